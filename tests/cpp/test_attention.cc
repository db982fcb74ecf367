// Attention over paths of random trees against a softmax in double precision.
#include "isa/kernels.h"
#include "support.h"

using namespace aegis;
using namespace aegis::test;

namespace {

struct AttentionCase {
  int d, group, queries, first;
  std::vector<int> lengths;                      // of the path's nodes, the last one the queries' own
  std::vector<std::vector<float>> keys, values;  // a node each, logical [n, d], bf16 numbers
  std::vector<uint16_t> q;                       // [queries * group, d]
  float softcap = 0.0f;
  int window = 0;

  AttentionCase(Random& random, int d_, int group_, int queries_, int first_, std::vector<int> lengths_, float spread)
      : d(d_), group(group_), queries(queries_), first(first_), lengths(std::move(lengths_)) {
    for (int n : lengths) {
      for (auto* to : {&keys, &values}) {
        to->emplace_back();
        for (int i = 0; i < n * d; ++i) to->back().push_back(from_bf16(to_bf16(random.uniform(-1.0f, 1.0f))));
      }
    }
    q = random_bf16(random, sz(queries * group * d), spread);
  }

  std::vector<float> run(const Kernels& kernels, float unseen = 0.0f) const {
    std::vector<std::vector<uint16_t>> k, v;
    std::vector<KvPart> parts;
    int padded = 0, start = 5;  // positions count from anywhere
    for (size_t p = 0; p < lengths.size(); ++p) {
      const int n = lengths[p];
      k.emplace_back(sz((n + 15) / 16 * 16 * d));
      v.emplace_back(sz((n + 1) / 2 * 2 * d));
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < d; ++j) {
          // Keys after the last query: never part of any sum.
          const bool hidden = unseen != 0.0f && p + 1 == lengths.size() && i >= first + queries;
          k.back()[sz(i / 16 * d * 16 + j / 2 * 32 + i % 16 * 2 + j % 2)] =
              to_bf16(hidden ? unseen : keys[p][sz(i * d + j)]);
          v.back()[sz(i / 2 * d * 2 + j * 2 + i % 2)] = to_bf16(values[p][sz(i * d + j)]);
        }
      padded += (n + 15) / 16 * 16;
    }
    for (size_t p = 0; p < lengths.size(); start += lengths[p++])
      parts.push_back({k[p].data(), v[p].data(), lengths[p], start});
    const size_t stride = sz(group * d + 3);
    std::vector<float> scores(sz(queries * group * padded)), out(stride * sz(queries), 77.0f), packed;
    std::vector<uint16_t> probs(scores.size());
    std::vector<QueryEnd> ends;
    for (int i = 0; i < queries; ++i) ends.push_back({static_cast<int>(parts.size()) - 1, first + i + 1});
    Attention t{};
    t.ends = ends.data();
    t.q = q.data(), t.parts = parts.data(), t.part_count = static_cast<int>(parts.size());
    t.queries = queries, t.group = group, t.d = d;
    t.scores = scores.data(), t.probs = probs.data(), t.out = out.data(), t.out_stride = stride;
    t.softcap = softcap, t.window = window;
    kernels.attend(t);
    for (int i = 0; i < queries; ++i)
      for (size_t j = 0; j < stride; ++j) {
        const float x = out[sz(i) * stride + j];
        if (j < sz(group * d))
          packed.push_back(x);
        else
          CHECK(x == 77.0f);  // what lies between the rows
      }
    return packed;
  }

  // Weights are rounded to bf16 (2^-8) and divided by the sum of what was rounded: twice 2^-8 of sum p |v| at most.
  // A score errs by its d + 2 fp32 roundings (twice that where an instruction truncates), a weight by e^that.
  void compare(const std::vector<float>& got) const {
    for (int row = 0; row < queries * group; ++row) {
      const int last = first + row / group;
      int before = 0;  // keys of the path up to the query, itself included
      for (size_t p = 0; p + 1 < lengths.size(); ++p) before += lengths[p];
      const int low = window == 0 ? 0 : before + last + 1 - window;
      int number = 0;
      std::vector<double> score;
      double largest = -1e300, slack = 0.0;
      for (size_t p = 0; p < lengths.size(); ++p)
        for (int i = 0; i < lengths[p]; ++i) {
          if (p + 1 == lengths.size() && i > last) break;
          const bool near = number++ >= low;
          double s = 0.0, magnitude = 0.0;
          for (int j = 0; j < d; ++j) {
            const double x = double{from_bf16(q[sz(row * d + j)])} * keys[p][sz(i * d + j)];
            s += x;
            magnitude += std::fabs(x);
          }
          if (softcap > 0.0f) s = double{softcap} * std::tanh(s / double{softcap});
          score.push_back(near ? s : -1e300);
          largest = std::max(largest, score.back());
          slack = std::max(slack, (d + 2) * 0x1p-23 * magnitude);
        }
      double sum = 0.0;
      for (double& s : score) sum += s = std::exp(s - largest);
      for (int j = 0; j < d; ++j) {
        double wanted = 0.0, magnitude = 0.0;
        size_t at = 0;
        for (size_t p = 0; p < lengths.size(); ++p)
          for (int i = 0; i < lengths[p] && (p + 1 < lengths.size() || i <= last); ++i, ++at) {
            wanted += score[at] / sum * values[p][sz(i * d + j)];
            magnitude += score[at] / sum * std::fabs(values[p][sz(i * d + j)]);
          }
        CHECK(std::fabs(got[sz(row * d + j)] - wanted) <= (0x1p-7 + 2 * slack + 1e-5) * magnitude);
      }
    }
  }
};

void check_case(const AttentionCase& c) {
  const auto scalar = c.run(kernels_scalar());
  for_each_isa([&](const Kernels& k) {
    about("%s d=%d group=%d queries=%d first=%d parts=%zu last=%d", k.name, c.d, c.group, c.queries, c.first,
          c.lengths.size(), c.lengths.back());
    const auto out = c.run(k);
    if (exact_bf16(k)) CHECK(same_bits(out, scalar));
    c.compare(out);
  });
}

}  // namespace

TEST(random_paths) {
  Random random(31);
  constexpr int kLengths[] = {1, 2, 3, 15, 16, 17, 31, 33, 50};
  for (int d : {16, 32, 64, 96, 128, 256})
    for (int round = 0; round < 12; ++round) {
      std::vector<int> lengths;
      for (int i = random.integer(1, 5); i > 0; --i) lengths.push_back(kLengths[random.integer(0, 8)]);
      const int n = lengths.back(), queries = random.integer(1, std::min(n, 8));
      check_case(AttentionCase(random, d, 1 + round % 8, queries, random.integer(0, n - queries), lengths, 1.0f));
    }
}

// Every query position of a node: the causal limit moves through blocks of 16 and pairs of values.
TEST(causal_limits) {
  Random random(32);
  for (int first = 0; first < 34; ++first) check_case(AttentionCase(random, 32, 2, 1, first, {5, 34}, 1.0f));
}

// The window's edge moves through blocks of 16, through nodes, and past the path's beginning.
TEST(windows) {
  Random random(37);
  for (int window : {1, 2, 15, 16, 17, 30, 33, 50, 64, 65, 90, 1000}) {
    AttentionCase c(random, 32, 2, 7, 3, {21, 16, 1, 30}, 1.0f);
    c.window = window;
    check_case(c);
    AttentionCase far = c;  // the inverse: a key beyond the window counts without it
    far.keys[0][0] += 2.0f;
    for_each_isa([&](const Kernels& k) {
      about("%s window=%d", k.name, window);
      CHECK(same_bits(c.run(k), far.run(k)) == (window < 42));  // the first query stands 41 keys behind
    });
  }
}

TEST(soft_caps) {
  Random random(38);
  for (float cap : {1.0f, 30.0f, 50.0f})
    for (int window : {0, 20}) {
      AttentionCase c(random, 64, 3, 4, 9, {17, 33}, 10.0f);
      c.softcap = cap, c.window = window;
      check_case(c);
      AttentionCase uncapped = c;
      uncapped.softcap = 0.0f;
      for_each_isa([&](const Kernels& k) { CHECK(!same_bits(c.run(k), uncapped.run(k))); });
    }
}

// A score that is no number stays one: it may not become the cap.
TEST(a_soft_cap_keeps_nan) {
  Random random(39);
  AttentionCase c(random, 32, 1, 1, 3, {9}, 1.0f);
  c.softcap = 10.0f;
  c.keys[0][5] = NAN;
  for_each_isa([&](const Kernels& k) { CHECK(std::isnan(c.run(k)[0])); });
}

TEST(long_contexts) {
  Random random(33);
  check_case(AttentionCase(random, 64, 3, 3, 990, {1503, 1, 993}, 0.5f));
  check_case(AttentionCase(random, 128, 1, 1, 0, {4097, 1}, 0.3f));
}

// Scores far apart: one key takes all the weight, none overflows.
TEST(sharp_scores) {
  Random random(34);
  check_case(AttentionCase(random, 64, 2, 4, 20, {40, 30}, 60.0f));
}

// A query's bits depend on its path alone, not on the queries beside it.
TEST(queries_alone_or_together) {
  Random random(35);
  const AttentionCase all(random, 64, 3, 8, 7, {21, 15}, 1.0f);
  for_each_isa([&](const Kernels& k) {
    about("%s", k.name);
    const auto together = all.run(k);
    for (int i = 0; i < 8; ++i) {
      AttentionCase one = all;
      one.queries = 1;
      one.first = all.first + i;
      one.q.assign(all.q.begin() + i * 3 * 64, all.q.begin() + (i + 1) * 3 * 64);
      const auto alone = one.run(k);
      CHECK(std::memcmp(alone.data(), together.data() + i * 3 * 64, alone.size() * 4) == 0);
    }
  });
}

// Keys after the last query do not matter, even as NaN; the last one it sees does.
TEST(later_keys_are_not_seen) {
  Random random(36);
  AttentionCase c(random, 32, 2, 3, 4, {9, 30}, 1.0f);
  for_each_isa([&](const Kernels& k) {
    about("%s", k.name);
    const auto out = c.run(k);
    CHECK(same_bits(c.run(k, NAN), out));
    AttentionCase other = c;
    other.keys.back()[sz(6 * 32)] += 1.0f;
    CHECK(!same_bits(other.run(k), out));
  });
}
