// Targets and losses of twin critics. Reference: src/rl/critic.rs and src/rl/actor.rs.
#include "common.cuh"

enum TargetOperator { OWN_TWIN_MIN, MEAN_OF_TWIN_MIN, ENSEMBLE_MIN, SUBSET_MIN };
enum ActorOperator { VALUE_MEAN_OF_TWIN_MIN, VALUE_MIN, VALUE_MEAN };

// Entry of the pool Q1_0 .. Q1_{N-1}, Q2_0 .. Q2_{N-1} at a row.
__device__ inline float pooled(const float* q1, const float* q2, int members, int batch, int place, int row) {
    return place < members ? q1[place * batch + row] : q2[(place - members) * batch + row];
}

// y_i = r + gamma (1 - terminated) (V_i - alpha log pi), (members, batch). `q1`, `q2`: (members, batch) of the target
// critics. `log_prob`: (batch) with stride 0, (members, batch) with stride batch, or null for a backup without entropy.
// `subset`: `chosen` places in the pool, for SUBSET_MIN.
KERNEL td_target(const float* q1, const float* q2, const float* reward, const float* terminated, const float* log_prob,
                 const float* alpha, const unsigned* subset, int chosen, int members, int batch, int log_prob_stride,
                 int rule, float discount, float* y) {
    for (int b = FIRST; b < batch; b += STRIDE) {
        float shared = 0.0f;
        if (rule == MEAN_OF_TWIN_MIN) {
            for (int i = 0; i < members; i++) shared += first_min(q1[i * batch + b], q2[i * batch + b]);
            shared /= members;
        } else if (rule != OWN_TWIN_MIN) {
            int entries = rule == SUBSET_MIN ? chosen : 2 * members;
            for (int k = 0; k < entries; k++) {
                float q = pooled(q1, q2, members, batch, rule == SUBSET_MIN ? (int)subset[k] : k, b);
                shared = k == 0 ? q : first_min(shared, q);
            }
        }
        float bootstrap = discount * (1.0f - terminated[b]);
        for (int i = 0; i < members; i++) {
            float value = rule == OWN_TWIN_MIN ? first_min(q1[i * batch + b], q2[i * batch + b]) : shared;
            if (log_prob) value -= *alpha * log_prob[i * log_prob_stride + b];
            y[i * batch + b] = reward[b] + bootstrap * value;
        }
    }
}

// sum_i mean_b (Q1_i - y_i)^2 + the same for Q2, a scalar; `n` = members x batch. One block.
KERNEL twin_loss(const float* q1, const float* q2, const float* y, int n, int batch, float* loss) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float d1 = q1[i] - y[i], d2 = q2[i] - y[i];
        sum += d1 * d1 + d2 * d2;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss = sum / batch;
}

KERNEL twin_loss_backward(const float* q1, const float* q2, const float* y, const float* g, int n, int batch, float* g1,
                          float* g2) {
    float scale = 2.0f * *g / batch;
    for (int i = FIRST; i < n; i += STRIDE) {
        g1[i] = scale * (q1[i] - y[i]);
        g2[i] = scale * (q2[i] - y[i]);
    }
}

// Value of an action for the actor, (batch), of critics (members, batch).
KERNEL actor_value(const float* q1, const float* q2, int members, int batch, int rule, float* value) {
    for (int b = FIRST; b < batch; b += STRIDE) {
        float sum = 0.0f, least = q1[b];
        for (int i = 0; i < members; i++) {
            float a = q1[i * batch + b], c = q2[i * batch + b];
            sum += rule == VALUE_MEAN ? 0.5f * (a + c) : first_min(a, c);
        }
        for (int k = 1; k < 2 * members; k++) least = first_min(least, pooled(q1, q2, members, batch, k, b));
        value[b] = rule == VALUE_MIN ? least : sum / members;
    }
}

// A minimum sends its gradient to the first critic that has it, and 0 to all others.
KERNEL actor_value_backward(const float* q1, const float* q2, const float* g, int members, int batch, int rule,
                            float* g1, float* g2) {
    for (int b = FIRST; b < batch; b += STRIDE) {
        int winner = 0;
        for (int k = 1; k < 2 * members; k++) {
            if (pooled(q1, q2, members, batch, k, b) < pooled(q1, q2, members, batch, winner, b)) winner = k;
        }
        for (int i = 0; i < members; i++) {
            bool second = q2[i * batch + b] < q1[i * batch + b];
            float share1 = rule == VALUE_MEAN ? 0.5f / members : second ? 0.0f : 1.0f / members;
            float share2 = rule == VALUE_MEAN ? 0.5f / members : second ? 1.0f / members : 0.0f;
            if (rule == VALUE_MIN) {
                share1 = winner == i ? 1.0f : 0.0f;
                share2 = winner == members + i ? 1.0f : 0.0f;
            }
            g1[i * batch + b] = share1 * g[b];
            g2[i * batch + b] = share2 * g[b];
        }
    }
}
