// One row of the batch (a sample at all its timesteps) of the distillation objectives: value and
// gradient with respect to the logits.
//
//   stepwise  w0 sum_t CE(z_t / tau_ce, y) + w1 s sum_t KL(q(teacher) || q(z_t))
//             + w2 s sum_t KL(q(own) || q(z_t)) + w3 sum_t H(softmax(z_t / tau_h))    (TWKD, TSER)
//   tssd      CE(mean z, y) + w1 s KL(q(mean z) || q(mean of the first z))
//             + w2 s mean_t KL(q(z_t) || q(aux_t))                  q = softmax(. / tau), s =
//             kl_scale
//
// What holds the row is a Row. Its classes are dealt out to the lanes of a vector type, the threads
// of a block, or one after the other, and `each` walks over what falls to the caller:
//   V logit(t, k), teacher(k), aux(t, k), label(k)    inputs; `label` is the target distribution
//   V label_index(), index(k)                         the label's class, and the class of k
//   V sum(V), max(V)                                  over all classes, known to all
//   V live(k, V)                                      0 where k is padding
//   keep(slot, k, V), V kept(slot, k)                 storage for a vector of all classes
//   cache(slot, k, V), V cached(slot, k, f)           the same, or f() again where that is cheaper
//   gradient(t, k, V), aux_gradient(t, k, V)          outputs, each after the last read of its
//   input
// Differences are taken before they are scaled, x = (z - max z) / tau, and KL terms are sums of
// p (ln p - ln q): equal logits give exactly 0.
#pragma once

#include "platform.h"

namespace snnfast {
inline namespace SNN_ISA {

enum SelfTarget : int { kSelfNone = 0, kSelfMean = 1, kSelfCorrect = 2 };

template <class R>
struct StepwiseRow {
  R inv_ce, inv_tau, inv_h;  // 1 / temperature
  R kl_scale;
  // What the gradients of the terms are multiplied by: weight, scale and 1 / temperature. Of a term
  // with 0 nothing is added: it may be no number.
  R g_ce, g_kl, g_self, g_h;
  int self_target;
  bool skip_all_wrong, entropy, teacher, gradient;
  bool shared_ce, shared_h;  // temperatures that are tau
  int power;  // 2, 3 or 4 where tau is that often tau_ce and a product is cheaper than an
              // exponential
};

template <class R>
struct TssdRow {
  R inv_tau, kl_scale;
  R ce_all, ce_student;                       // weights within the task term
  R g_all, g_student, g_temporal, g_spatial;  // as above
  long long student_steps;
  bool aux, per_step, gradient, aux_gradient;
};

enum Slot : int { kOwn = 0, kMean = 0, kStudent = 1, kAuxMean = 2, kSlots = 3 };
enum Cache : int { kCe = 0, kTau = 1, kH = 2, kTeacherP = 3, kOwnP = 4, kCaches = 5 };

// softmax(z / tau) of one vector of logits.
template <class V>
struct Softmax {
  V top, inv_tau, log_sum, over_sum;
  SNN_HD V log_q(V z) const { return mad_(z - top, inv_tau, V(0) - log_sum); }
  SNN_HD V q(V e) const { return e * over_sum; }
};

template <class Row, class F>
SNN_HD typename Row::V top_of(Row& row, F&& z) {
  using V = typename Row::V;
  V top(typename Row::R(-3e38));
  row.each([&](auto k) { top = larger_(top, z(k)); });
  return row.max(top);
}

template <class V>
SNN_HD Softmax<V> softmax_of_sum(V top, V inv_tau, V sum) {
  return {top, inv_tau, log_(sum), V(1) / sum};
}

// The softmax of z(k), whose largest is `top`, its exponentials left in `cache`.
template <class Row, class V, class F>
SNN_HD Softmax<V> softmax_below(Row& row, int cache, V inv_tau, V top, F&& z) {
  V sum(0);
  row.each([&](auto k) {
    const V e = row.live(k, exp_((z(k) - top) * inv_tau));
    row.cache(cache, k, e);
    sum = sum + e;
  });
  return softmax_of_sum(top, inv_tau, row.sum(sum));
}

template <class Row, class V, class F>
SNN_HD Softmax<V> softmax_of(Row& row, int cache, V inv_tau, F&& z) {
  return softmax_below(row, cache, inv_tau, top_of(row, z), z);
}

// Those of a teacher u(k) and of z(k), in the same two passes; exponentials in kTeacherP and kTau.
template <class V>
struct Softmaxes {
  Softmax<V> p, q;
};

template <class Row, class V, class U, class Z>
SNN_HD Softmaxes<V> softmaxes_of(Row& row, V inv_tau, U&& u, Z&& z) {
  V top_u(typename Row::R(-3e38)), top_z = top_u, sum_u(0), sum_z(0);
  row.each([&](auto k) { top_u = larger_(top_u, u(k)), top_z = larger_(top_z, z(k)); });
  top_u = row.max(top_u), top_z = row.max(top_z);
  row.each([&](auto k) {
    const V e_u = row.live(k, exp_((u(k) - top_u) * inv_tau));
    const V e_z = row.live(k, exp_((z(k) - top_z) * inv_tau));
    row.cache(kTeacherP, k, e_u), row.cache(kTau, k, e_z);
    sum_u = sum_u + e_u, sum_z = sum_z + e_z;
  });
  const auto p = softmax_of_sum(top_u, inv_tau, row.sum(sum_u));
  return {p, softmax_of_sum(top_z, inv_tau, row.sum(sum_z))};
}

template <class Row, class V>
SNN_HD V probability(Row& row, int cache, const Softmax<V>& s, V z, int k) {
  return s.q(row.cached(cache, k, [&] { return row.live(k, exp_((z - s.top) * s.inv_tau)); }));
}

template <class V>
SNN_HD V power_of(V e, int n) {
  const V square = e * e;
  return n == 2 ? square : n == 3 ? square * e : square * square;
}

// The student's own target logits into kOwn; returns how much the row's own term weighs, 0 or 1.
template <class Row, class R>
SNN_HD typename Row::V own_target(Row& row, const StepwiseRow<R>& p) {
  using V = typename Row::V;
  if (p.self_target == kSelfMean) {
    row.each([&](auto k) {
      V sum = row.logit(0, k);
      for (long long t = 1; t < row.steps; ++t) sum = sum + row.logit(t, k);
      row.keep(kOwn, k, sum / V(R(row.steps)));
    });
    return V(1);
  }
  V count(0);
  row.each([&](auto k) { row.keep(kOwn, k, V(0)); });
  for (long long t = 0; t < row.steps; ++t) {
    const V top = top_of(row, [&](auto k) { return row.logit(t, k); });
    // The first of equal logits: the smallest index, as the largest of the negative ones.
    V first = V(R(-1e9));
    row.each([&](auto k) {
      const V index = V(0) - row.index(k);
      first = larger_(first, select(row.logit(t, k) == top, index, V(R(-1e9))));
    });
    first = V(0) - row.max(first);
    const auto right = first == row.label_index();
    count = count + select(right, V(1), V(0));
    row.each([&](auto k) {
      row.keep(kOwn, k, row.kept(kOwn, k) + select(right, row.logit(t, k), V(0)));
    });
  }
  const V some = larger_(count, V(1));
  row.each([&](auto k) { row.keep(kOwn, k, row.kept(kOwn, k) / some); });
  return p.skip_all_wrong ? select(count > V(0), V(1), V(0)) : V(1);
}

// terms: cross-entropy, KL to the teacher, KL to the own target, entropy; sums over time.
template <class Row, class R>
SNN_HD void stepwise_row(Row& row, const StepwiseRow<R>& p, typename Row::V (&terms)[4]) {
  using V = typename Row::V;
  const V inv_tau(p.inv_tau);
  Softmax<V> teacher{}, own{};
  V own_weight(0);
  if (p.teacher)
    teacher = softmax_of(row, kTeacherP, inv_tau, [&](auto k) { return row.teacher(k); });
  if (p.self_target != kSelfNone) {
    own_weight = own_target(row, p);
    own = softmax_of(row, kOwnP, inv_tau, [&](auto k) { return row.kept(kOwn, k); });
  }
  V mass(0);
  row.each([&](auto k) { mass = mass + row.label(k); });
  mass = row.sum(mass);

  const bool has_tau = p.teacher || p.self_target != kSelfNone;
  const bool separate = has_tau && !p.shared_ce;
  const V g_self = V(p.g_self) * own_weight;
  V ce(0), kl(0), self(0), entropy(0);
  for (long long t = 0; t < row.steps; ++t) {
    const V top = top_of(row, [&](auto k) { return row.logit(t, k); });
    V sum_ce(0), sum_tau(0), sum_h(0), moment(0);
    row.each([&](auto k) {
      const V x = row.logit(t, k) - top;
      V e(0), e_tau(0);
      if (separate) {
        e_tau = row.live(k, exp_(x * inv_tau));
        row.cache(kTau, k, e_tau);
        sum_tau = sum_tau + e_tau;
        e = p.power ? power_of(e_tau, p.power) : row.live(k, exp_(x * V(p.inv_ce)));
      } else {
        e_tau = e = row.live(k, exp_(x * V(p.inv_ce)));
      }
      row.cache(kCe, k, e);
      sum_ce = sum_ce + e;
      if (p.entropy) {
        V e_h = e_tau;
        if (!has_tau || !p.shared_h) {
          e_h = row.live(k, exp_(x * V(p.inv_h)));
          row.cache(kH, k, e_h);
          sum_h = sum_h + e_h;
        }
        moment = mad_(e_h, x, moment);
      }
    });
    const auto q_ce = softmax_of_sum(top, V(p.inv_ce), row.sum(sum_ce));
    auto q_tau = q_ce, q_h = q_ce;
    int at_tau = kCe, at_h = kCe;
    if (separate) q_tau = softmax_of_sum(top, inv_tau, row.sum(sum_tau)), at_tau = kTau;
    V spread(0);
    if (p.entropy) {
      q_h = q_tau, at_h = at_tau;
      if (!has_tau || !p.shared_h) q_h = softmax_of_sum(top, V(p.inv_h), row.sum(sum_h)), at_h = kH;
      spread = q_h.log_sum - row.sum(moment) * q_h.inv_tau * q_h.over_sum;
      entropy = entropy + spread;
    }
    row.each([&](auto k) {
      const V z = row.logit(t, k), y = row.label(k);
      ce = ce - y * q_ce.log_q(z);
      V g(0);
      if (p.g_ce != R(0)) g = V(p.g_ce) * (probability(row, kCe, q_ce, z, k) * mass - y);
      if (has_tau) {
        const V log_q = q_tau.log_q(z), q = probability(row, at_tau, q_tau, z, k);
        if (p.teacher) {
          const V u = row.teacher(k), prob = probability(row, kTeacherP, teacher, u, k);
          kl = mad_(prob, teacher.log_q(u) - log_q, kl);
          if (p.g_kl != R(0)) g = mad_(V(p.g_kl), q - prob, g);
        }
        if (p.self_target != kSelfNone) {
          const V u = row.kept(kOwn, k), prob = probability(row, kOwnP, own, u, k);
          self = mad_(prob, own.log_q(u) - log_q, self);
          if (p.g_self != R(0)) g = mad_(g_self, q - prob, g);
        }
      }
      if (p.entropy && p.g_h != R(0))
        g = mad_(V(p.g_h) * probability(row, at_h, q_h, z, k), q_h.log_q(z) + spread, g);
      if (p.gradient) row.gradient(t, k, g);
    });
  }
  terms[0] = row.sum(ce);
  terms[1] = row.sum(kl) * V(p.kl_scale);
  terms[2] = row.sum(self) * own_weight * V(p.kl_scale);
  terms[3] = entropy;
}

// KL(q(u) || q(z)) over tau, and coefficient * (q(z) - q(u)) to `out`.
template <class Row, class R, class U, class Z, class Out>
SNN_HD typename Row::V kl_row(Row& row, R inv_tau, R coefficient, U&& u, Z&& z, Out&& out) {
  using V = typename Row::V;
  const auto both = softmaxes_of(row, V(inv_tau), u, z);
  const auto &p = both.p, &q = both.q;
  V kl(0);
  row.each([&](auto k) {
    const V prob = probability(row, kTeacherP, p, u(k), k);
    kl = mad_(prob, p.log_q(u(k)) - q.log_q(z(k)), kl);
    V g(0);
    if (coefficient != R(0)) g = V(coefficient) * (probability(row, kTau, q, z(k), k) - prob);
    out(k, g);
  });
  return row.sum(kl);
}

// terms: cross-entropy, temporal and spatial KL.
template <class Row, class R>
SNN_HD void tssd_row(Row& row, const TssdRow<R>& p, typename Row::V (&terms)[4]) {
  using V = typename Row::V;
  const V zero(0);
  // The mean over all steps continues the sum over the first: the two are equal where T_s = T.
  row.each([&](auto k) {
    V sum = row.logit(0, k);
    for (long long t = 1; t < p.student_steps; ++t) sum = sum + row.logit(t, k);
    row.keep(kStudent, k, sum / V(R(p.student_steps)));
    for (long long t = p.student_steps; t < row.steps; ++t) sum = sum + row.logit(t, k);
    row.keep(kMean, k, sum / V(R(row.steps)));
  });
  V mass(0);
  row.each([&](auto k) { mass = mass + row.label(k); });
  mass = row.sum(mass);
  const auto mean = [&](auto k) { return row.kept(kMean, k); };
  const auto student = [&](auto k) { return row.kept(kStudent, k); };

  terms[2] = zero, terms[3] = zero;
  if (p.aux && p.per_step) {
    for (long long t = 0; t < row.steps; ++t) {
      const auto z = [&](auto k) { return row.logit(t, k); };
      const auto w = [&](auto k) { return row.aux(t, k); };
      terms[2] = terms[2] + kl_row(row, p.inv_tau, p.g_spatial, z, w, [&](auto k, V g) {
                   if (p.aux_gradient) row.aux_gradient(t, k, g);
                 });
    }
    terms[2] = terms[2] * V(p.kl_scale) / V(R(row.steps));
  } else if (p.aux) {
    row.each([&](auto k) {
      V sum = row.aux(0, k);
      for (long long t = 1; t < row.steps; ++t) sum = sum + row.aux(t, k);
      row.keep(kAuxMean, k, sum / V(R(row.steps)));
    });
    const auto w = [&](auto k) { return row.kept(kAuxMean, k); };
    terms[2] = V(p.kl_scale) * kl_row(row, p.inv_tau, p.g_spatial, mean, w, [&](auto k, V g) {
                 for (long long t = 0; p.aux_gradient && t < row.steps; ++t)
                   row.aux_gradient(t, k, g);
               });
  }

  // From here on kCe and kH hold the exponentials at temperature 1, kTeacherP and kTau those at
  // tau.
  const auto both = softmaxes_of(row, V(p.inv_tau), mean, student);
  const auto &taught = both.p, &learns = both.q;
  Softmax<V> all{}, first{};
  if (p.ce_all != R(0)) all = softmax_below(row, kCe, V(1), taught.top, mean);
  if (p.ce_student != R(0)) first = softmax_below(row, kH, V(1), learns.top, student);
  V task(0), kl(0);
  row.each([&](auto k) {
    const V a = mean(k), s = student(k), y = row.label(k);
    V g_all(0), g_first(0);
    if (p.ce_all != R(0)) {
      task = task - V(p.ce_all) * y * all.log_q(a);
      g_all = V(p.g_all) * (probability(row, kCe, all, a, k) * mass - y);
    }
    if (p.ce_student != R(0)) {
      task = task - V(p.ce_student) * y * first.log_q(s);
      g_first = V(p.g_student) * (probability(row, kH, first, s, k) * mass - y);
    }
    const V prob = probability(row, kTeacherP, taught, a, k);
    kl = mad_(prob, taught.log_q(a) - learns.log_q(s), kl);
    if (p.g_temporal != R(0))
      g_first = mad_(V(p.g_temporal), probability(row, kTau, learns, s, k) - prob, g_first);
    if (p.gradient) {
      g_first = g_first + g_all;
      for (long long t = 0; t < row.steps; ++t)
        row.gradient(t, k, t < p.student_steps ? g_first : g_all);
    }
  });
  terms[0] = row.sum(task);
  terms[1] = row.sum(kl) * V(p.kl_scale);
}

}  // namespace SNN_ISA
}  // namespace snnfast
