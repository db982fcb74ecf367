// The promise of the token tree: a node's logits depend on its own and its ancestors' ids alone. Not on the batch, its
// order, the threads, the cache or what the tree held before; bit for bit.
#include <numeric>
#include <thread>

#include "tiny_model.h"

using namespace aegis;
using namespace aegis::test;

namespace {

// A policy with three prompts, their verdicts and a response; parents by place in the list, -1 the root.
struct Spec {
  std::vector<int32_t> root;
  std::vector<Segment> nodes;

  explicit Spec(const Config& c, uint64_t seed = 51) {
    Random random(seed);
    root = random_ids(random, 21, c.vocab);
    const auto add = [&](int n, int parent, std::vector<int> slots) {
      nodes.push_back({random_ids(random, n, c.vocab), parent, std::move(slots)});
    };
    add(5, -1, {});
    add(17, -1, {0, 16});
    add(1, -1, {0});
    add(1, 0, {0});
    add(1, 1, {0});
    add(32, 3, {7, 8, 31});
    add(3, 5, {2});
    add(13, 4, {});
    add(9, 7, {8});
  }
};

using Logits = std::vector<std::vector<float>>;  // of each node

// Extends by the nodes in `order`, `batch` of them a pass; logits by node.
Logits score(Model& model, Tree& tree, int root, const Spec& spec, const std::vector<int>& order, size_t batch) {
  Logits logits(spec.nodes.size());
  std::vector<int> number(spec.nodes.size());
  for (size_t first = 0; first < order.size(); first += batch) {
    std::vector<Segment> segments;
    for (size_t i = first; i < order.size() && i < first + batch; ++i) {
      const Segment& node = spec.nodes[sz(order[i])];
      number[sz(order[i])] = tree.size() + static_cast<int>(segments.size());
      segments.push_back({node.ids, node.parent < 0 ? root : number[sz(node.parent)], node.slots});
    }
    const auto all = extend(model, tree, segments);
    auto at = all.begin();
    for (size_t i = first; i < first + segments.size(); ++i) {
      const auto count = static_cast<long>(segments[i - first].slots.size()) * model.config().rows;
      logits[sz(order[i])].assign(at, at + count);
      at += count;
    }
  }
  return logits;
}

// A root computed in the tree itself: node 1 under an empty node 0.
struct Rooted {
  Tree tree{nullptr, nullptr, 0};
  Rooted(Model& model, const std::vector<int32_t>& ids) { extend_root(model, tree, ids); }
};

Logits score(Model& model, const Spec& spec, const std::vector<int>& order, size_t batch) {
  Rooted r(model, spec.root);
  return score(model, r.tree, 1, spec, order, batch);
}

bool same(const Logits& a, const Logits& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!same_bits(a[i], b[i])) return false;
  return a.size() == b.size();
}

const std::vector<std::vector<int>> kOrders = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8}, {2, 1, 4, 7, 8, 0, 3, 5, 6}, {0, 3, 5, 6, 2, 1, 4, 7, 8}, {1, 0, 4, 3, 7, 5, 8, 6, 2}};

std::vector<float> flat(const Logits& logits) {
  std::vector<float> all;
  for (const auto& x : logits) all.insert(all.end(), x.begin(), x.end());
  return all;
}

}  // namespace

TEST(any_batch_any_order_any_threads) {
  for (Scheme scheme : kSchemes) {
    const TinyModel tiny(scheme);
    const Spec spec(tiny.config());
    std::vector<float> exact;
    for_each_isa([&](const Kernels& k) {
      Logits wanted;
      for (int threads : {1, 2, 3}) {
        if (emulated() && (threads == 3 || (threads == 2 && scheme != Scheme::kInt8))) continue;
        const auto model = tiny.build(threads);
        CHECK(&model->kernels() == &k && model->threads() == threads);
        if (threads == 1) wanted = score(*model, spec, kOrders[0], 9);
        // More threads than free cores are slow: they get fewer orders.
        const size_t orders = threads == 1 ? kOrders.size() : 1;
        const std::vector<size_t> batches = threads == 1 ? std::vector<size_t>{1, 2, 4, 9} : std::vector<size_t>{4, 9};
        for (size_t o = 0; o < orders; ++o)
          for (size_t batch : batches) {
            about("%s %s threads=%d order=%zu batch=%zu", k.name, name_of(scheme), threads, o, batch);
            CHECK(same(score(*model, spec, kOrders[o], batch), wanted));
          }
      }
      about("%s %s", k.name, name_of(scheme));
      for (float x : flat(wanted)) CHECK(std::isfinite(x));
      // Between sets: the scalar one's bits, or close to them.
      if (!exact_bf16(k)) return;
      if (exact.empty()) exact = flat(wanted);
      CHECK(same_bits(flat(wanted), exact));
    });
  }
}

// The comparison above can fail: under another parent, at another depth or after another token the logits differ.
// More tokens than one pass takes: the batch is computed in parts, children in other parts than their parents.
TEST(batches_larger_than_a_pass) {
  const TinyModel tiny(Scheme::kInt8);
  Spec spec(tiny.config());
  Random random(53);
  spec.nodes.clear();
  for (int i = 0; i < 23; ++i) spec.nodes.push_back({random_ids(random, 20 + i, tiny.config().vocab), -1, {i, 19 + i}});
  for (int i = 0; i < 23; ++i) spec.nodes.push_back({random_ids(random, 1 + i % 3, tiny.config().vocab), i, {0}});
  for (int i = 0; i < 9; ++i) spec.nodes.push_back({random_ids(random, 2, tiny.config().vocab), 45 - i, {}});
  std::vector<int> order(spec.nodes.size());
  std::iota(order.begin(), order.end(), 0);
  for_each_isa([&](const Kernels& k) {
    about("%s", k.name);
    const auto model = tiny.build(2);
    const Logits alone = score(*model, spec, order, 1);
    CHECK(same(score(*model, spec, order, order.size()), alone));
    Spec other = spec;  // the inverse: another parent in another part
    other.nodes[40].parent = 1;
    CHECK(!same(score(*model, other, order, order.size()), alone));
  });
}

TEST(other_ancestors_give_other_logits) {
  for (Scheme scheme : kSchemes) {
    const TinyModel tiny(scheme);
    const Spec spec(tiny.config());
    for_each_isa([&](const Kernels& k) {
      about("%s %s", k.name, name_of(scheme));
      const auto model = tiny.build(1);
      const auto wanted = score(*model, spec, kOrders[0], 9);
      Spec moved = spec;
      moved.nodes[6].parent = 8;
      const auto other = score(*model, moved, {0, 1, 2, 3, 4, 5, 7, 8, 6}, 9);
      CHECK(!same_bits(other[6], wanted[6]));
      CHECK(same_bits(other[8], wanted[8]));
      Spec edited = spec;
      edited.nodes[0].ids[2] = (edited.nodes[0].ids[2] + 1) % tiny.config().vocab;
      const auto after = score(*model, edited, kOrders[0], 9);
      for (size_t node : {3u, 5u, 6u}) CHECK(!same_bits(after[node], wanted[node]));
      for (size_t node : {1u, 2u, 4u, 8u}) CHECK(same_bits(after[node], wanted[node]));
    });
  }
}

TEST(root_computed_or_reused) {
  for (Scheme scheme : kSchemes) {
    const TinyModel tiny(scheme);
    const Spec spec(tiny.config());
    for_each_isa([&](const Kernels& k) {
      about("%s %s", k.name, name_of(scheme));
      const auto model = tiny.build(2);
      const auto wanted = score(*model, spec, kOrders[0], 9);
      const Config& c = tiny.config();
      Rooted r(*model, spec.root);
      const Node& root = r.tree.node(1);
      const size_t planes = sz(c.layers * c.kv_heads);
      const std::vector<uint16_t> keys(root.k, root.k + planes * key_size(root.n, c.head_dim));
      const std::vector<uint16_t> values(root.v, root.v + planes * value_size(root.n, c.head_dim));
      for (int round = 0; round < 2; ++round) {
        Tree tree(keys.data(), values.data(), root.n);
        CHECK(same(score(*model, tree, 0, spec, kOrders[1], 4), wanted));
      }
    });
  }
}

// Memory of truncated nodes is used again: whatever it held must not show, not even in the padding of odd lengths.
TEST(truncate_and_extend_again) {
  for (Scheme scheme : kSchemes) {
    const TinyModel tiny(scheme);
    const Spec spec(tiny.config()), other(tiny.config(), 52);
    for_each_isa([&](const Kernels& k) {
      about("%s %s", k.name, name_of(scheme));
      const auto model = tiny.build(1);
      const auto wanted = score(*model, spec, kOrders[0], 9);
      Rooted r(*model, spec.root);
      for (size_t batch : {9, 2, 1}) {
        score(*model, r.tree, 1, other, kOrders[2], batch);
        CHECK(r.tree.size() == 11);
        model->truncate(r.tree, 2);
        CHECK(r.tree.size() == 2);
        CHECK(same(score(*model, r.tree, 1, spec, kOrders[0], batch), wanted));
        model->truncate(r.tree, 20);  // nothing to drop
        CHECK(r.tree.size() == 11);
        // Part of it again: node 8 of the list stands at 10.
        model->truncate(r.tree, 10);
        CHECK(same_bits(extend(*model, r.tree, {{spec.nodes[8].ids, 9, spec.nodes[8].slots}}), wanted[8]));
        model->truncate(r.tree, 2);
      }
      CHECK_THROWS(model->truncate(r.tree, 0), std::invalid_argument, "keeps at least its root");
    });
  }
}

// The last layer does most of its work for the slots alone; slots elsewhere must not change any. On the path they do:
// a slot's row has two digits, and later tokens attend to it.
TEST(few_slots_or_all) {
  for (Scheme scheme : kSchemes) {
    const TinyModel tiny(scheme);
    const Spec spec(tiny.config());
    for_each_isa([&](const Kernels& k) {
      about("%s %s", k.name, name_of(scheme));
      const auto model = tiny.build(1);
      const auto few = score(*model, spec, kOrders[0], 9);
      const auto everywhere = [&](const std::vector<size_t>& nodes) {
        Spec more = spec;
        for (size_t node : nodes) {
          more.nodes[node].slots.clear();
          for (size_t i = 0; i < spec.nodes[node].ids.size(); ++i)
            more.nodes[node].slots.push_back(static_cast<int>(i));
        }
        return score(*model, more, kOrders[0], 9);
      };
      CHECK(same_bits(everywhere({0, 2, 3, 5, 6})[8], few[8]));
      CHECK(same_bits(everywhere({1, 2, 4, 7, 8})[6], few[6]));
      CHECK(same_bits(everywhere({7})[8], few[8]) == (scheme == Scheme::kBf16));
      Spec last = spec;  // no slot before: keys and values are still there for what follows
      for (size_t node = 0; node < 8; ++node) last.nodes[node].slots.clear();
      Spec none = last;
      none.nodes[8].slots.clear();
      Rooted r(*model, spec.root);
      const auto empty = score(*model, r.tree, 1, none, kOrders[0], 9);
      CHECK(flat(empty).empty());
      CHECK(same_bits(extend(*model, r.tree, {{spec.nodes[8].ids, 9, spec.nodes[8].slots}}),
                      score(*model, last, kOrders[0], 9)[8]));
    });
  }
}

// A node that grows in place, past its room in another, is the same bits as one node of all its tokens, wherever it
// stood still, on any number of threads; also where tokens of another text take the place of some.
TEST(a_node_that_grew_is_one_of_all_its_tokens) {
  for (Scheme scheme : kSchemes) {
    const TinyModel tiny(scheme);
    Random random(54);
    const auto ids = random_ids(random, 75, tiny.config().vocab), other = random_ids(random, 16, tiny.config().vocab);
    const auto root = random_ids(random, 21, tiny.config().vocab);
    for_each_isa([&](const Kernels& k) {
      about("%s %s", k.name, name_of(scheme));
      const auto model = tiny.build(emulated() ? 1 : 2);
      const auto whole = [&](int n) {
        Rooted r(*model, root);
        return extend(*model, r.tree, {{piece(ids, 0, n), 1, {}}, {{3}, 2, {0}}});
      };
      Rooted r(*model, root);
      Tree& tree = r.tree;
      CHECK(same_bits(extend(*model, tree, {{piece(ids, 0, 7), 1, {}, 48}, {{3}, 2, {0}}}), whole(7)));
      int have = 7;
      for (int end : {8, 16, 29, 31, 48}) {
        model->truncate(tree, 3);
        // First another text, which the next call takes back: its tokens are gone.
        const int kept = have - have / 4;
        if (have + 5 <= 48) extend(*model, tree, {{piece(other, 0, have + 5 - kept), 2, {}, 0, kept}});
        const auto grown = extend(*model, tree, {{piece(ids, kept, end), 2, {}, 0, kept}, {{3}, 2, {0}}});
        CHECK(same_bits(grown, whole(end)) && tree.size() == 4 && tree.node(2).n == end);
        have = end;
      }
      model->truncate(tree, 3);
      extend(*model, tree, {{piece(ids, 40, 41), 2, {}, 0, 40}});
      // The room's rest and a node behind it in one call.
      const auto both =
          extend(*model, tree, {{piece(ids, 41, 48), 2, {}, 0, 41}, {piece(ids, 48, 75), 2, {}, 32}, {{3}, 3, {0}}});
      CHECK(same_bits(both, whole(75)));
      // The inverse: one token of another text is kept.
      model->truncate(tree, 3);
      extend(*model, tree, {{piece(other, 0, 9), 2, {}, 0, 30}});
      const auto wrong = extend(*model, tree, {{piece(ids, 31, 48), 2, {}, 0, 31}, {{3}, 2, {0}}});
      CHECK(!same_bits(wrong, whole(48)));
    });
  }
}

TEST(logits_are_the_head_times_the_hidden_state) {
  const TinyModel tiny(Scheme::kInt8);
  const Config& c = tiny.config();
  for_each_isa([&](const Kernels& k) {
    about("%s", k.name);
    const auto model = tiny.build(1);
    Tree tree(nullptr, nullptr, 0), again(nullptr, nullptr, 0);
    const std::vector<Segment> batch{{{1, 2, 3, 4, 5}, 0, {1, 4}}};
    std::vector<float> hidden;
    const auto logits = extend(*model, tree, batch, &hidden);
    CHECK(same_bits(extend(*model, again, batch), logits));
    for (int s = 0; s < 2; ++s)
      for (int r = 0; r < c.rows; ++r) {
        double sum = tiny.head_bias()[sz(r)];
        for (int i = 0; i < c.hidden; ++i)
          sum += double{hidden[sz(s * c.hidden + i)]} * tiny.head()[sz(r * c.hidden + i)];
        CHECK(std::fabs(logits[sz(s * c.rows + r)] - sum) < 1e-5);
      }
  });
}

// The rotary tables grow with the longest path; what was computed before must come out the same after.
TEST(positions_beyond_the_first_tables) {
  Config config = tiny_config();
  config.layers = 1;
  config.context = 600;
  const TinyModel tiny(Scheme::kInt8, config);
  const Spec spec(config);
  Random random(53);
  const auto ids = random_ids(random, 560, config.vocab);  // the first tables hold 512 positions
  const auto model = tiny.build(2);
  const auto before = score(*model, spec, kOrders[0], 9);
  Tree tree(nullptr, nullptr, 0);
  const auto whole = extend(*model, tree, {{ids, 0, {559}}});
  for (float x : whole) CHECK(std::isfinite(x));
  CHECK(same(score(*model, spec, kOrders[0], 9), before));
  const auto fresh = tiny.build(1);
  Tree other(nullptr, nullptr, 0);
  CHECK(same_bits(extend(*fresh, other, {{ids, 0, {559}}}), whole));
}

TEST(many_callers_at_once) {
  const TinyModel tiny(Scheme::kInt8);
  const Spec spec(tiny.config());
  const auto model = tiny.build(2);
  const auto wanted = score(*model, spec, kOrders[0], 9);
  bool equal[4] = {};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&, i] {
      equal[i] = true;
      for (int round = 0; round < 3; ++round)
        equal[i] = equal[i] && same(score(*model, spec, kOrders[sz(i)], sz(1 + i * 3)), wanted);
    });
  for (std::thread& t : callers) t.join();
  for (bool e : equal) CHECK(e);
}

// A NaN weight poisons the paths it lies on and no others: never a number that looks like a verdict.
TEST(nan_stays_on_its_path) {
  for (Scheme scheme : kSchemes) {
    TinyModel tiny(scheme);
    const Spec spec(tiny.config());
    const int32_t poisoned = tiny.config().vocab - 1;
    Spec with = spec;
    for (auto& node : with.nodes)
      for (int32_t& id : node.ids) id %= poisoned;
    for (int32_t& id : with.root) id %= poisoned;
    const auto before = with;
    with.nodes[0].ids[1] = poisoned;
    tiny.embedding()[sz(poisoned * tiny.config().hidden + 7)] = 0x7fc0;
    for_each_isa([&](const Kernels& k) {
      about("%s %s", k.name, name_of(scheme));
      const auto model = tiny.build(1);
      const auto clean = score(*model, before, kOrders[0], 9), dirty = score(*model, with, kOrders[0], 9);
      for (size_t node : {3u, 5u, 6u})
        for (float x : dirty[node]) CHECK(std::isnan(x));
      for (size_t node : {1u, 2u, 4u, 8u}) CHECK(same_bits(dirty[node], clean[node]));
    });
  }
}

// Memory that held NaN is used again by nodes of odd lengths: their padding is multiplied by 0, which NaN survives.
TEST(nan_in_used_memory_does_not_come_back) {
  for (Scheme scheme : kSchemes) {
    TinyModel tiny(scheme);
    const Config& c = tiny.config();
    Spec spec(c);
    const int32_t poisoned = c.vocab - 1;
    for (auto& node : spec.nodes)
      for (int32_t& id : node.ids) id %= poisoned;
    for (int32_t& id : spec.root) id %= poisoned;
    for (int i = 0; i < c.hidden; ++i) tiny.embedding()[sz(poisoned * c.hidden + i)] = 0x7fc0;
    for_each_isa([&](const Kernels& k) {
      about("%s %s", k.name, name_of(scheme));
      const auto model = tiny.build(1);
      const auto wanted = score(*model, spec, kOrders[0], 9);
      Rooted r(*model, spec.root);
      const std::vector<int32_t> ids(96, poisoned);
      for (float x : extend(*model, r.tree, {{ids, 1, {95}}, {ids, 1, {}}, {ids, 1, {}}})) CHECK(std::isnan(x));
      model->truncate(r.tree, 2);
      CHECK(same(score(*model, r.tree, 1, spec, kOrders[0], 9), wanted));
    });
  }
}

// Two threads with rows of their own: the first one's last value may stand in a pair with one that the second has not
// stored yet, and what memory held there must not be read, not even times 0.
TEST(nan_beside_the_last_own_row_is_not_read) {
  TinyModel tiny(Scheme::kInt8);
  const Config& c = tiny.config();
  const int32_t poisoned = c.vocab - 1;
  for (int i = 0; i < c.hidden; ++i) tiny.embedding()[sz(poisoned * c.hidden + i)] = 0x7fc0;
  Random random(59);
  const auto alone = tiny.build(1), both = tiny.build(2);
  for (int round = 0; round < 40; ++round) {
    const int n = 65 + round % 8;
    about("%d tokens", n);
    const auto ids = random_ids(random, n, poisoned);
    Tree clean(nullptr, nullptr, 0), used(nullptr, nullptr, 0);
    extend(*both, used, {{std::vector<int32_t>(sz(n), poisoned), 0, {n - 1}}});
    both->truncate(used, 1);
    const auto wanted = extend(*alone, clean, {{ids, 0, {n - 1}}});
    const auto found = extend(*both, used, {{ids, 0, {n - 1}}});
    for (size_t i = 0; i < wanted.size(); ++i) CHECK(same_bits(found[i], wanted[i]));
  }
}
