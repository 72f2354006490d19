// Adam and the slow copy of target networks in one pass. Reference: src/nn/kernels.rs, `adam` and `blend`.
#include "common.cuh"

// One step of Adam with its bias corrections in `rate` and `root_scale`; then, where there is a target,
// target = keep target + take parameter, with the parameter after its step.
KERNEL adam_polyak(float* parameter, float* m, float* v, const float* g, float* target, int n, float beta1, float take1,
                   float beta2, float take2, float rate, float root_scale, float eps, float keep, float take) {
    for (int i = FIRST; i < n; i += STRIDE) {
        float gradient = g[i];
        float first = beta1 * m[i] + take1 * gradient, second = beta2 * v[i] + take2 * (gradient * gradient);
        float p = parameter[i] - rate * first / (sqrtf(second) * root_scale + eps);
        m[i] = first;
        v[i] = second;
        parameter[i] = p;
        if (target) target[i] = target[i] * keep + p * take;
    }
}
