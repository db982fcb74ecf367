// exp and SiLU over sixteen lanes.
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
    return V::keep_ge(V::mul(p, V::pow2(n)), x, low);
  }

  // x * sigmoid(x)
  static F silu(F x) {
    const F one = V::set1(1.0f);
    return V::div(x, V::add(one, exp(V::sub(V::zero(), x))));
  }
};

}  // namespace
}  // namespace aegis
