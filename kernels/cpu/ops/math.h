// exp, SiLU, GELU and the soft cap over sixteen lanes.
#pragma once

namespace aegis {
namespace {

template <class V>
struct Math {
  using F = typename V::F;

  // exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln 2 / 2 (Cody-Waite, ln 2 in two parts), exp(r) by its
  // Taylor polynomial of degree 6: next term (0.3466^7 / 7!) = 1.2e-7, half an ulp of fp32. Exactly 0 below -87.
  static F exp(F x) {
    const F low = V::set1(-87.0f);
    const F y = V::min(V::max(x, low), V::set1(88.0f));
    const F n = V::round(V::mul(y, V::set1(1.44269504f)));
    F r = V::fma(n, V::set1(-0.693145752f), y);
    r = V::fma(n, V::set1(-1.42860677e-6f), r);
    F p = V::set1(1.0f / 720.0f);
    p = V::fma(p, r, V::set1(1.0f / 120.0f));
    p = V::fma(p, r, V::set1(1.0f / 24.0f));
    p = V::fma(p, r, V::set1(1.0f / 6.0f));
    p = V::fma(p, r, V::set1(0.5f));
    p = V::fma(p, r, V::set1(1.0f));
    p = V::fma(p, r, V::set1(1.0f));
    return V::keep_ge(V::scale(p, n), x, low);
  }

  // 2^t for t <= 0, to be rounded to bf16: 2^n * 2^f, n = round(t), |f| <= 1/2, 2^f by the polynomial of degree 3 with
  // the least relative error, 7.5e-5 (a rounding to bf16 is off by up to 2e-3). 0 for t far below -127, NaN for NaN.
  static F exp2_bf16(F t) {
    const F n = V::round(t), f = V::sub(t, n);
    F p = V::fma(V::set1(0.05517166f), f, V::set1(0.24261112f));
    p = V::fma(p, f, V::set1(0.69326099f));
    p = V::fma(p, f, V::set1(0.99992807f));
    return V::scale(p, n);
  }

  // x * sigmoid(x) = x / (1 + 2^t), t = -x / ln 2, to be quantised: 2^f, |f| <= 1/2, by the polynomial of degree 4 with
  // the least relative error, 2.6e-6; t is off by 2^-24 of itself, so up to 5e-6 of the result at x = -87. Of Inf it
  // makes NaN or Inf.
  static F silu(F x) {
    const F t = V::min(V::mul(x, V::set1(-1.44269504f)), V::set1(127.0f));
    const F n = V::round(t), f = V::sub(t, n);
    F p = V::fma(V::set1(0.00957010210f), f, V::set1(0.0559178591f));
    p = V::fma(p, f, V::set1(0.240247443f));
    p = V::fma(p, f, V::set1(0.693121791f));
    p = V::fma(p, f, V::set1(0.999999285f));
    return V::div(x, V::add(V::set1(1.0f), V::scale(p, n)));
  }

  // 0.5 x (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) (arXiv 1606.08415)
  static F gelu(F x) {
    const F two_u = V::mul(x, V::fma(V::mul(x, x), V::set1(0.0713548163f), V::set1(1.5957691216f)));
    return V::div(x, V::add(V::set1(1.0f), exp(V::sub(V::zero(), two_u))));
  }

  // cap * tanh(x / cap) = cap - 2 cap / (exp(2 x / cap) + 1); a NaN stays one, which exp alone would lose.
  static F softcap(F x, F cap, F two_by_cap) {
    const F e = V::add(exp(V::mul(x, two_by_cap)), V::set1(1.0f));
    return V::fma(x, V::zero(), V::sub(cap, V::div(V::add(cap, cap), e)));
  }
};

}  // namespace
}  // namespace aegis
