// Scores of a small model written down once: the same on x86 and ARM, in a debug or release build, this year and next.
//
// Weights and ids come from integer arithmetic, so only the rotary tables (libm's sin and cos) may differ between
// platforms, in their last bit. Where a change is meant to alter scores, the lines to paste are printed.
#include "tiny_model.h"

using namespace aegis;
using namespace aegis::test;

namespace {

constexpr int kSlots = 3, kRows = 3;
struct Golden {
  Scheme scheme;
  float logits[kSlots * kRows];
};

// clang-format off
constexpr Golden kGolden[] = {
    {Scheme::kInt8,
     {1.96474051f, -1.14356232f, -1.37518477f,
      0.284331918f, -0.659823656f, -1.17074144f,
      0.132500529f, -0.00116658211f, -0.246158138f}},
    {Scheme::kInt4,
     {-1.68643546f, -0.970906496f, -0.601555467f,
      0.169450402f, 0.420964003f, 1.44961953f,
      -0.143937707f, 0.441818297f, -0.0459831953f}},
    {Scheme::kBf16,
     {0.786443353f, -0.628162980f, -0.574940205f,
      -0.511084199f, 2.11012292f, -0.547202170f,
      0.361598015f, 0.739241600f, -0.482235610f}},
};
// clang-format on

// A path of three nodes with a sibling, slots in each.
std::vector<float> logits(Model& model, const Config& config) {
  Random random(82);
  Tree tree(nullptr, nullptr, 0);
  const auto root = random_ids(random, 37, config.vocab);
  extend_root(model, tree, root);
  const auto prompt = random_ids(random, 18, config.vocab), verdict = random_ids(random, 1, config.vocab);
  return extend(model, tree, {{prompt, 1, {17}}, {verdict, 2, {0}}, {random_ids(random, 5, config.vocab), 1, {4}}});
}

}  // namespace

// smmla sums the integers that sdot does, and the rest of its set is neonbf16: no bit differs.
TEST(i8mm_changes_no_bit) {
  for (const Golden& golden : kGolden) {
    const TinyModel tiny(golden.scheme, tiny_config(), 81);
    std::vector<float> with, without;
    for_each_isa([&](const Kernels& k) {
      const bool i8mm = std::strcmp(k.name, "neoni8mmbf16") == 0;
      if (i8mm || std::strcmp(k.name, "neonbf16") == 0) (i8mm ? with : without) = logits(*tiny.build(1), tiny.config());
    });
    about("%s", name_of(golden.scheme));
    if (!with.empty()) CHECK(same_bits(with, without));
  }
}

TEST(golden_scores) {
  for (const Golden& golden : kGolden) {
    const TinyModel tiny(golden.scheme, tiny_config(), 81);
    for_each_isa([&](const Kernels& k) {
      about("%s %s", k.name, name_of(golden.scheme));
      const auto model = tiny.build(1);
      const auto got = logits(*model, tiny.config());
      // A last bit of sin or cos may round a bf16 key the other way (2^-8 of it), as may a bf16 instruction.
      const float tolerance = 0.01f;
      bool agree = true;
      for (int i = 0; i < kSlots * kRows; ++i) agree = agree && std::fabs(got[sz(i)] - golden.logits[i]) <= tolerance;
      CHECK(agree);
      if (agree) return;
      std::printf("  %s on %s:", name_of(golden.scheme), k.name);
      for (float x : got) std::printf(" %#.9gf,", double{x});
      std::printf("\n");
    });
  }
}
