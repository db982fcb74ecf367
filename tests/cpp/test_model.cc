// What a model refuses, by message, and that a refusal leaves the tree as it was.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdlib>
#include <functional>
#include <new>
#include <stdexcept>
#include <thread>

#include "tiny_model.h"

using namespace aegis;
using namespace aegis::test;

// Every `new` of this program and every aligned_alloc of the runtime (which calls nothing else: --wrap in
// CMakeLists.txt), counted. Not inlined: gcc would see free() meet new and warn.
static std::atomic<long> allocations{0};

__attribute__((noinline)) void* operator new(size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes == 0 ? 1 : bytes)) return p;
  throw std::bad_alloc();
}
#if defined(AEGIS_WRAP)
extern "C" void* __real_aligned_alloc(size_t, size_t);
extern "C" void* __wrap_aligned_alloc(size_t alignment, size_t bytes) {
  ++allocations;
  return __real_aligned_alloc(alignment, bytes);
}
#endif
__attribute__((noinline)) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, size_t) noexcept { std::free(p); }

TEST(bad_configs) {
  struct Bad {
    std::function<void(Config&)> change;
    const char* message;
  };
  const Bad list[] = {
      {[](Config& c) { c.layers = 0; }, "layers"},
      {[](Config& c) { c.layers = 1025; }, "layers"},
      {[](Config& c) { c.hidden = 0; }, "hidden"},
      {[](Config& c) { c.hidden = 72; }, "hidden"},
      {[](Config& c) { c.hidden = -16; }, "hidden"},
      {[](Config& c) { c.hidden = 1 << 17; }, "hidden"},
      {[](Config& c) { c.intermediate = 8; }, "intermediate"},
      {[](Config& c) { c.intermediate = 100; }, "intermediate"},
      {[](Config& c) { c.intermediate = INT_MAX - 15; }, "intermediate"},
      {[](Config& c) { c.head_dim = 48; }, "head_dim"},
      {[](Config& c) { c.head_dim = 0; }, "head_dim"},
      {[](Config& c) { c.head_dim = 544; }, "head_dim"},
      {[](Config& c) { c.heads = 0; }, "heads"},
      {[](Config& c) { c.heads = 5; }, "kv_heads"},
      {[](Config& c) { c.kv_heads = 0; }, "kv_heads"},
      {[](Config& c) { c.kv_heads = 12; }, "kv_heads"},
      {[](Config& c) { c.vocab = 0; }, "vocab"},
      {[](Config& c) { c.vocab = INT_MAX; }, "vocab"},
      {[](Config& c) { c.context = 0; }, "context"},
      {[](Config& c) { c.context = INT_MAX; }, "context"},
      {[](Config& c) { c.rows = 0; }, "rows"},
      {[](Config& c) { c.rows = 5000; }, "rows"},
      {[](Config& c) { c.norm_eps = 0.0f; }, "norm_eps"},
      {[](Config& c) { c.norm_eps = NAN; }, "norm_eps"},
      {[](Config& c) { c.norm_eps = 1.0f; }, "norm_eps"},
      {[](Config& c) { c.hadamard_block = 8; }, "hadamard_block"},
      {[](Config& c) { c.hadamard_block = 48; }, "hadamard_block"},
      {[](Config& c) { c.hadamard_block = 64; }, "hadamard_block"},  // does not divide 96
      {[](Config& c) { c.hadamard_block = -16; }, "hadamard_block"},
      {[](Config& c) { c.inverse_frequency.pop_back(); }, "inverse_frequency"},
      {[](Config& c) { c.inverse_frequency.clear(); }, "inverse_frequency"},
  };
  for (const Bad& bad : list) {
    about("%s", bad.message);
    Config c = tiny_config();
    bad.change(c);
    CHECK_THROWS(Model(c, 1), std::invalid_argument, bad.message);
  }
  CHECK_THROWS(Model(tiny_config(), 0), std::invalid_argument, "thread");
}

TEST(missing_weights) {
  const TinyModel tiny(Scheme::kInt8);
  const auto whole = tiny.build(1);
  Model model(tiny.config(), 1);
  const Kernels& k = model.kernels();
  const auto& layers = tiny.layers();
  Tree tree(nullptr, nullptr, 0);
  CHECK_THROWS(extend(model, tree, {{{1}, 0, {0}}}), std::invalid_argument, "weight missing: layer 0 q");
  CHECK(tree.size() == 1);
  for (int i = 0; i < tiny.config().layers; ++i) {
    const TinyLayer& l = layers[sz(i)];
    CHECK_THROWS(model.check_complete(), std::invalid_argument, "weight missing");
    l.qkv.pack(model.linear(i, "q"), 0, tiny.config().q_size(), k);
    CHECK_THROWS(model.check_complete(), std::invalid_argument, " kv");
    l.qkv.pack(model.linear(i, "kv"), tiny.config().q_size(), 2 * tiny.config().kv_size(), k);
    CHECK_THROWS(model.check_complete(), std::invalid_argument, " o");
    l.o.pack(model.linear(i, "o"), 0, l.o.n, k);
    CHECK_THROWS(model.check_complete(), std::invalid_argument, " gate_up");
    l.gate_up.pack(model.linear(i, "gate_up"), 0, l.gate_up.n, k);
    CHECK_THROWS(model.check_complete(), std::invalid_argument, " down");
    l.down.pack(model.linear(i, "down"), 0, l.down.n, k);
  }
  CHECK_THROWS(model.check_complete(), std::invalid_argument, "embedding");
  model.set_embedding(tiny.embedding().data());
  CHECK_THROWS(model.check_complete(), std::invalid_argument, "head");
  model.set_head(tiny.head().data(), tiny.head_bias().data());
  model.check_complete();
  Tree other(nullptr, nullptr, 0);
  extend(model, tree, {{{1}, 0, {0}}});
  CHECK(tree.size() == 2);
  // q and kv read the same prepared rows.
  const TinyModel bf16(Scheme::kBf16);
  bf16.layers()[0].qkv.pack(model.linear(0, "q"), 0, tiny.config().q_size(), k);
  CHECK_THROWS(model.check_complete(), std::invalid_argument, "both be int8 or both bf16");
}

TEST(unknown_names) {
  const TinyModel tiny(Scheme::kInt8);
  const auto model = tiny.build(1);
  CHECK_THROWS(model->linear(0, "qkv"), std::invalid_argument, "no linear layer is called qkv");
  CHECK_THROWS(model->linear(2, "q"), std::invalid_argument, "no layer 2");
  CHECK_THROWS(model->linear(-1, "q"), std::invalid_argument, "no layer -1");
  CHECK_THROWS(model->layer(2), std::out_of_range, "");
}

// Raw batches, as a caller in C++ or through the binding could make them wrong.
TEST(bad_batches) {
  const TinyModel tiny(Scheme::kInt8);
  const Config& c = tiny.config();
  const auto model = tiny.build(1);
  Tree tree(nullptr, nullptr, 0);
  extend(*model, tree, {{{1, 2, 3}, 0, {}}, {{4}, 1, {}}});
  const std::vector<Segment> good{{{5, 6}, 1, {1}}, {{7}, 3, {0}}};
  Tree untouched(nullptr, nullptr, 0);
  extend(*model, untouched, {{{1, 2, 3}, 0, {}}, {{4}, 1, {}}});
  const auto wanted = extend(*model, untouched, good);

  using Ids = std::vector<int32_t>;
  struct Bad {
    Ids ids, offsets, parents, slots;
    const char* message;
  };
  const Bad list[] = {
      {{1}, {0}, {}, {}, "at least one segment"},
      {{1, 2}, {1, 2}, {0}, {}, "offsets must start at 0"},
      {{1, 2}, {-1, 2}, {0}, {}, "offsets must start at 0"},
      {{1, 2}, {0, 0, 2}, {0, 0}, {}, "segment 0 is empty"},
      {{1, 2}, {0, 2, 2}, {0, 0}, {}, "segment 1 is empty"},
      {{1, 2}, {0, 2, 1, 2}, {0, 0, 0}, {}, "segment 1 is empty"},
      {{1, 2}, {0, 1, INT_MIN, 2}, {0, 0, 0}, {}, "segment 1 is empty"},
      {{1, 2}, {0, INT_MAX, 2}, {0, 0}, {}, "context"},
      {{1}, {0, 1}, {-1}, {}, "segment 0: no such parent"},
      {{1}, {0, 1}, {3}, {}, "segment 0: no such parent"},           // itself
      {{1, 2}, {0, 1, 2}, {4, 0}, {}, "segment 0: no such parent"},  // a later one
      {{1, 2}, {0, 1, 2}, {0, INT_MAX}, {}, "segment 1: no such parent"},
      {{1, c.vocab}, {0, 2}, {0}, {}, "token id 61 is outside"},
      {{-1, 1}, {0, 2}, {0}, {}, "token id -1 is outside"},
      {{INT_MIN, 1}, {0, 2}, {0}, {}, "outside the vocabulary"},
      {{1, 2}, {0, 2}, {0}, {2}, "slots must be increasing"},
      {{1, 2}, {0, 2}, {0}, {-1}, "slots must be increasing"},
      {{1, 2}, {0, 2}, {0}, {1, 1}, "slots must be increasing"},
      {{1, 2}, {0, 2}, {0}, {1, 0}, "slots must be increasing"},
      {{1, 2}, {0, 2}, {0}, {0, 1, 2}, "slots must be increasing"},
  };
  std::vector<float> logits(64, 5.0f);
  for (const Bad& bad : list) {
    about("%s", bad.message);
    const Batch batch{bad.ids.data(),     bad.offsets.data(),
                      bad.parents.data(), static_cast<int>(bad.parents.size()),
                      bad.slots.data(),   static_cast<int>(bad.slots.size())};
    CHECK_THROWS(model->extend(tree, batch, logits.data(), nullptr), std::exception, bad.message);
    CHECK(tree.size() == 3);
  }
  const int32_t ids[] = {1, 2}, offsets[] = {0, 2}, parents[] = {0}, slots[] = {1};
  CHECK_THROWS(model->extend(tree, {ids, offsets, parents, 1, slots, 1, true}, logits.data(), nullptr),
               std::invalid_argument, "a policy's root has no slots");
  for (float x : logits) CHECK(x == 5.0f);
  CHECK(same_bits(extend(*model, tree, good), wanted));
}

TEST(nodes_that_can_not_grow) {
  Config config = tiny_config();
  config.context = 40;
  const TinyModel tiny(Scheme::kInt8, config);
  const auto model = tiny.build(1);
  Tree tree(nullptr, nullptr, 0);
  extend(*model, tree, {{{1, 2, 3}, 0, {}, 16}, {{4, 5}, 1, {}}, {{6}, 0, {}, 40}});
  const auto refused = [&](const std::vector<Segment>& batch, const char* message) {
    about("%s", message);
    CHECK_THROWS(extend(*model, tree, batch), std::exception, message);
    CHECK(tree.size() == 4 && tree.node(1).n == 3 && tree.node(2).n == 2 && tree.node(3).n == 1);
  };
  const std::vector<int32_t> many(40, 7);
  refused({{{7}, 0, {}, 0, 0}}, "segment 0: node 0 can not grow: it is the root");
  refused({{{7}, 1, {}, 0, 3}}, "segment 0: node 1 can not grow: it has children");
  refused({{{7}, 2, {}, 0, 2}}, "segment 0: node 2 can not grow: it has no room");
  refused({{{7}, 3, {}, 0, 2}}, "segment 0: node 3 can not grow: it has fewer tokens than are to be kept");
  refused({{{7}, 3, {}}, {{7}, 3, {}, 0, 1}}, "segment 1: node 3 can not grow: the batch has used it before");
  refused({{{7}, 3, {}, 0, 1}, {{7}, 3, {}, 0, 1}}, "segment 1: node 3 can not grow: the batch has used it before");
  refused({{{7}, 0, {}}, {{7}, 4, {}, 0, 1}}, "segment 1: node 4 can not grow: it is the root, or of the same batch");
  refused({{many, 3, {}, 0, 1}}, "segment 0: node 3 can not grow: it has no room");
  refused({{{many.begin(), many.begin() + 39}, 3, {}, 0, 1}, {{7}, 3, {}}}, "41 tokens, but the model's context is 40");
  refused({{{7}, 0, {}, 41}}, "segment 0: room for more tokens than the context holds");
  extend(*model, tree, {{{many.begin(), many.begin() + 39}, 3, {}, 0, 1}});
  CHECK(tree.size() == 4 && tree.node(3).n == 40);
}

// The context limits a path from the root's first to a leaf's last token; not the tree.
TEST(paths_longer_than_the_context) {
  Config config = tiny_config();
  config.context = 40;
  const TinyModel tiny(Scheme::kInt8, config);
  const auto model = tiny.build(1);
  Random random(71);
  Tree tree(nullptr, nullptr, 0);
  extend(*model, tree, {{random_ids(random, 20, config.vocab), 0, {}}});
  const auto tail = random_ids(random, 21, config.vocab);
  CHECK_THROWS(extend(*model, tree, {{tail, 1, {20}}}), std::length_error, "41 tokens, but the model's context is 40");
  const std::vector<int32_t> half(tail.begin(), tail.begin() + 11);
  CHECK_THROWS(extend(*model, tree, {{half, 1, {}}, {half, 2, {}}}), std::length_error, "42 tokens");
  CHECK(tree.size() == 2);
  const std::vector<int32_t> fits(tail.begin(), tail.begin() + 20);
  for (float x : extend(*model, tree, {{fits, 1, {19}}, {fits, 1, {0}}})) CHECK(std::isfinite(x));
  CHECK(tree.size() == 4);
  CHECK_THROWS(extend(*model, tree, {{{1}, 2, {0}}}), std::length_error, "41 tokens");
  CHECK_THROWS(extend(*model, tree, {{random_ids(random, 41, config.vocab), 0, {}}}), std::length_error, "41 tokens");
}

// A child forked while other threads are inside the model is refused at once, although their lock is never released.
TEST(fork_during_a_pass) {
  const TinyModel tiny(Scheme::kInt8);
  const auto model = tiny.build(2);
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    Random random(72);
    const auto ids = random_ids(random, 100, tiny.config().vocab);
    while (!stop) {
      Tree tree(nullptr, nullptr, 0);
      extend(*model, tree, {{ids, 0, {99}}});
    }
  });
  Tree tree(nullptr, nullptr, 0);
  extend(*model, tree, {{{1, 2}, 0, {}}});
  std::fflush(stdout);
  for (int i = 0; i < 10; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(10);
      try {
        extend(*model, tree, {{{3}, 1, {0}}});
      } catch (const std::runtime_error&) {
        _exit(0);
      }
      _exit(1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  stop = true;
  busy.join();
}

// Pieces are aligned, apart from each other and written to their ends: in one block, and past its end.
TEST(huge_pages) {
  HugePages pages;
  const size_t sizes[] = {1, 64, size_t{5} << 20, size_t{28} << 20, size_t{33} << 20, 100};
  std::vector<std::byte*> pieces;
  for (size_t n : sizes) {
    pieces.push_back(pages.allocate(n));
    CHECK(reinterpret_cast<uintptr_t>(pieces.back()) % kAlignment == 0);
    std::memset(pieces.back(), static_cast<int>(pieces.size()), n);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto mark = static_cast<std::byte>(i + 1);
    CHECK(pieces[i][0] == mark && pieces[i][sizes[i] - 1] == mark);
  }
}

// Layers are packed side by side: no two threads get the same memory.
TEST(huge_pages_of_several_threads) {
  HugePages pages;
  constexpr int kThreads = 4, kPieces = 20000;
  constexpr size_t kBytes = 64;
  std::vector<std::byte*> pieces(size_t{kThreads} * kPieces);
  std::vector<std::thread> threads;
  std::atomic<int> ready{0};  // all begin at once
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (++ready; ready.load() < kThreads;) std::this_thread::yield();
      for (int i = 0; i < kPieces; ++i) pieces[static_cast<size_t>(t * kPieces + i)] = pages.allocate(kBytes);
    });
  for (auto& thread : threads) thread.join();
  std::sort(pieces.begin(), pieces.end());
  for (size_t i = 1; i < pieces.size(); ++i) CHECK(pieces[i] - pieces[i - 1] >= static_cast<ptrdiff_t>(kBytes));
}

// A matrix large enough for them multiplies as one of its own memory does.
TEST(a_matrix_in_huge_pages) {
  Random random(79);
  const TinyLinear logical(random, Scheme::kInt8, 320, 256, false);
  const auto& k = choose_kernels();
  const std::vector<uint8_t> a(256, 131);
  const std::vector<float> scale{0.5f};
  const Inputs in{a.data(), scale.data(), 1};
  HugePages pages;
  std::vector<float> out[2];
  for (std::vector<float>& to : out) {
    Linear linear;
    if (&to == &out[1]) linear.use(pages);
    logical.pack(linear, 0, 320, k);
    to.resize(320);
    linear.run(k, in, to.data(), 320, Epilogue::kStore, 0, linear.half_panels(), nullptr, nullptr, nullptr);
  }
  CHECK(same_bits(out[0], out[1]));
}

// After a pass of the same shape, a pass allocates nothing: neither this thread nor the team's.
TEST(warm_passes_allocate_nothing) {
  for (Scheme scheme : kSchemes) {
    const TinyModel tiny(scheme);
    for_each_isa([&](const Kernels& k) {
      about("%s %s", k.name, name_of(scheme));
      const auto model = tiny.build(2);
      Tree tree(nullptr, nullptr, 0);
      extend_root(*model, tree, {1, 2, 3});
      const int32_t ids[] = {4, 5, 6, 7, 8}, offsets[] = {0, 4, 5}, parents[] = {1, 2}, slots[] = {4};
      std::vector<float> logits(sz(tiny.config().rows));
      const auto pass = [&] {
        model->truncate(tree, 2);
        model->extend(tree, {ids, offsets, parents, 2, slots, 1}, logits.data(), nullptr);
      };
      pass();
      const long before = allocations.load();
      pass();
      CHECK(allocations.load() == before);
      const std::vector<int> counted(1);
      CHECK(allocations.load() == before + 1);  // the counter works
#if defined(AEGIS_WRAP)
      const AlignedBytes bytes = aligned_bytes(64);
      CHECK(allocations.load() == before + 2);
#endif
    });
  }
}

#if !defined(__SANITIZE_ADDRESS__)  // which needs its address space
// Memory that runs out while a pass is prepared: the tree is as it was, and a smaller pass works.
TEST(out_of_memory) {
  if (emulated()) return;
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    Config config = tiny_config();
    config.context = 1 << 20;
    const TinyModel tiny(Scheme::kInt8, config);
    const auto model = tiny.build(1);
    Tree tree(nullptr, nullptr, 0);
    const auto wanted = extend(*model, tree, {{{1, 2, 3}, 0, {2}}});
    long pages = 0;
    std::FILE* f = std::fopen("/proc/self/statm", "r");
    if (f == nullptr || std::fscanf(f, "%ld", &pages) != 1) _exit(2);
    const rlim_t size = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE)) + (64u << 20);
    const rlimit limit{size, size};
    setrlimit(RLIMIT_AS, &limit);
    Random random(73);
    const auto ids = random_ids(random, 50000, config.vocab);  // 1 KB of keys and values a token, 2 KB of scratch
    for (int parts : {1, 2, 3})
      CHECK_THROWS(extend(*model, tree, std::vector<Segment>(sz(parts), {ids, 1, {0}})), std::bad_alloc, "");
    CHECK(tree.size() == 2);
    CHECK(same_bits(extend(*model, tree, {{{1, 2, 3}, 0, {2}}}), wanted));
    std::fflush(stdout);
    _exit(failures == 0 ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif
