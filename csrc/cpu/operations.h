// The instructions of the interpreter: each a loop over a row. Pairs of operations, of which the
// first has one reader, are one instruction; each of the two is rounded on its own.
#pragma once

#include "functions.h"
#include "program.h"
#include "rows.h"
#include "surrogate.h"

namespace snnfast {
inline namespace SNN_ISA {

// A value of the program: a row, or the same number for all neurons, which step 0 reads again and
// again. What is written may go to a second row past the caches, too; or on top of what is there.
template <class R>
struct Place {
  R* at;
  int64_t step = 1;
  R* past = nullptr;
  bool add = false;
  SNN_HD void put(int64_t i, Lanes<R> v) const {
    if (past) Io<R>::stream(past + i, v);
    if (add) v = v + load(at + i);
    store(at + i, v);
  }
};

template <class R>
Lanes<R> from_mask(Mask<R> m) {
  Lanes<R> v;
  each_register([&](int i) { v.p[i] = (typename Lanes<R>::reg)m.p[i]; });
  return v;
}
template <class R>
SNN_HD Mask<R> to_mask(Lanes<R> v) {
  Mask<R> m;
  each_register([&](int i) { m.p[i] = (typename Register<R>::mask)v.p[i]; });
  return m;
}

#define SNN_OPERATION1(name, value)  \
  struct name {                      \
    static constexpr int kArity = 1; \
    template <class V>               \
    SNN_HD static V of(V a) {        \
      return value;                  \
    }                                \
  };
#define SNN_OPERATION2(name, value)  \
  struct name {                      \
    static constexpr int kArity = 2; \
    template <class V>               \
    SNN_HD static V of(V a, V b) {   \
      return value;                  \
    }                                \
  };
SNN_OPERATION2(Add, a + b)
SNN_OPERATION2(Sub, a - b)
SNN_OPERATION2(SubFrom, b - a)
SNN_OPERATION2(Mul, a* b)
SNN_OPERATION2(Div, a / b)
SNN_OPERATION2(DivInto, b / a)
// Of two zeros the second, as PyTorch has it; NaN where either is.
SNN_OPERATION2(Min, select(a != a, a, select(a < b, a, b)))
SNN_OPERATION2(Max, select(a != a, a, select(a > b, a, b)))
SNN_OPERATION2(Pow, full_pow(a, b))
SNN_OPERATION2(Ge, from_mask(a >= b))
SNN_OPERATION2(Gt, from_mask(a > b))
SNN_OPERATION2(Eq, from_mask(a == b))
SNN_OPERATION2(Ne, from_mask(a != b))
SNN_OPERATION1(Copy, a)
SNN_OPERATION1(Neg, -a)
SNN_OPERATION1(Abs, abs_(a))
SNN_OPERATION1(Exp, full_exp(a))
SNN_OPERATION1(Log, full_log(a))
SNN_OPERATION1(Sqrt, full_sqrt(a))
SNN_OPERATION1(Tanh, full_tanh(a))
SNN_OPERATION1(Sigmoid, full_sigmoid(a))
SNN_OPERATION1(Spike, select(a >= V(0), V(1), V(0)))
#undef SNN_OPERATION1
#undef SNN_OPERATION2

#define SNN_BITS(name, value)                                 \
  struct name {                                               \
    static constexpr int kArity = 2;                          \
    template <class V>                                        \
    SNN_HD static V of(V a, V b) {                            \
      using Bits = typename Register<typename V::real>::mask; \
      each_register([&](int i) {                              \
        const Bits x = (Bits)a.p[i], y = (Bits)b.p[i];        \
        a.p[i] = (typename V::reg)(value);                    \
      });                                                     \
      return a;                                               \
    }                                                         \
  };
SNN_BITS(And, x& y)
SNN_BITS(Or, x | y)
SNN_BITS(Not, ~x | (y & 0))
#undef SNN_BITS

struct Where {
  static constexpr int kArity = 3;
  template <class V>
  SNN_HD static V of(V m, V a, V b) {
    return select(to_mask(m), a, b);
  }
};

// g(u), with the surrogate's parameters behind it.
template <int kId>
struct Gradient {
  static constexpr int kArity = 3;
  template <class V>
  SNN_HD static V of(V u, V a, V b) {
    return gradient<kId>(u, a.p[0][0], b.p[0][0]);
  }
};

// The second operation of the first one's value and whatever else it takes.
template <class First, class Second>
struct Then {
  static constexpr int kArity = First::kArity + Second::kArity - 1;
  template <class V, class... Rest>
  SNN_HD static V of(V a, V b, Rest... rest) {
    if constexpr (First::kArity == 2)
      return Second::of(First::of(a, b), rest...);
    else
      return of_three(a, b, rest...);
  }
  template <class V, class... Rest>
  SNN_HD static V of_three(V a, V b, V c, Rest... rest) {
    return Second::of(First::of(a, b, c), rest...);
  }
};

template <class R, class F>
void run_row(const Place<R>* places, const Instruction& in, int64_t n) {
  constexpr int kArity = F::kArity;
  const Place<R> to = places[in.to];
  const R* p[kOperands];
  int64_t step[kOperands];
  for (int k = 0; k < kArity; ++k) p[k] = places[in.of[k]].at, step[k] = places[in.of[k]].step;
  for (int64_t i = 0; i < n; i += Lanes<R>::kCount) {
    const auto operand = [&](int k) { return load(p[k] + i * step[k]); };
    if constexpr (kArity == 1)
      to.put(i, F::of(operand(0)));
    else if constexpr (kArity == 2)
      to.put(i, F::of(operand(0), operand(1)));
    else if constexpr (kArity == 3)
      to.put(i, F::of(operand(0), operand(1), operand(2)));
    else
      to.put(i, F::of(operand(0), operand(1), operand(2), operand(3)));
  }
}

struct Operation {
  const char* name;
  void (*in_float)(const Place<float>*, const Instruction&, int64_t);
  void (*in_double)(const Place<double>*, const Instruction&, int64_t);
  void operator()(const Place<float>* p, const Instruction& in, int64_t n) const {
    in_float(p, in, n);
  }
  void operator()(const Place<double>* p, const Instruction& in, int64_t n) const {
    in_double(p, in, n);
  }
};

#define SNN_NAMED(name, ...) {name, run_row<float, __VA_ARGS__>, run_row<double, __VA_ARGS__>}
// "sub div": the quotient of a difference; "sub div-into": a quotient by one.
#define SNN_THEN(name, First)                                                                      \
  SNN_NAMED(name " add", Then<First, Add>), SNN_NAMED(name " sub", Then<First, Sub>),              \
      SNN_NAMED(name " sub-from", Then<First, SubFrom>), SNN_NAMED(name " mul", Then<First, Mul>), \
      SNN_NAMED(name " div", Then<First, Div>), SNN_NAMED(name " div-into", Then<First, DivInto>), \
      SNN_NAMED(name " spike", Then<First, Spike>)
#define SNN_GRADIENT(k) SNN_NAMED("surrogate " #k, Gradient<k>)
constexpr Operation kOperations[] = {
    SNN_NAMED("copy", Copy),
    SNN_NAMED("add", Add),
    SNN_NAMED("sub", Sub),
    SNN_NAMED("mul", Mul),
    SNN_NAMED("div", Div),
    SNN_NAMED("min", Min),
    SNN_NAMED("max", Max),
    SNN_NAMED("pow", Pow),
    SNN_NAMED("neg", Neg),
    SNN_NAMED("abs", Abs),
    SNN_NAMED("exp", Exp),
    SNN_NAMED("log", Log),
    SNN_NAMED("sqrt", Sqrt),
    SNN_NAMED("tanh", Tanh),
    SNN_NAMED("sigmoid", Sigmoid),
    SNN_NAMED("ge", Ge),
    SNN_NAMED("gt", Gt),
    SNN_NAMED("eq", Eq),
    SNN_NAMED("ne", Ne),
    SNN_NAMED("and", And),
    SNN_NAMED("or", Or),
    SNN_NAMED("not", Not),
    SNN_NAMED("where", Where),
    SNN_NAMED("ge where", Then<Ge, Where>),
    SNN_NAMED("gt where", Then<Gt, Where>),
    SNN_NAMED("eq where", Then<Eq, Where>),
    SNN_NAMED("ne where", Then<Ne, Where>),
    SNN_NAMED("spike", Spike),
    SNN_NAMED("sub div add", Then<Then<Sub, Div>, Add>),
    SNN_NAMED("sub mul add", Then<Then<Sub, Mul>, Add>),
    SNN_THEN("add", Add),
    SNN_THEN("sub", Sub),
    SNN_THEN("mul", Mul),
    SNN_THEN("div", Div),
    SNN_GRADIENT(0),
    SNN_GRADIENT(1),
    SNN_GRADIENT(2),
    SNN_GRADIENT(3),
    SNN_GRADIENT(4),
    SNN_GRADIENT(5),
    SNN_GRADIENT(6),
    SNN_GRADIENT(7),
    SNN_GRADIENT(8),
    SNN_GRADIENT(9),
    SNN_GRADIENT(10),
    SNN_GRADIENT(11),
    SNN_GRADIENT(12),
    SNN_GRADIENT(13),
    SNN_GRADIENT(14),
};
#undef SNN_NAMED
#undef SNN_THEN
#undef SNN_GRADIENT
constexpr int64_t kOperationCount = sizeof kOperations / sizeof kOperations[0];

}  // namespace SNN_ISA
}  // namespace snnfast
