// Kernels by name, for the processor.
#define FIELDTUNE_HOST
#include "all.cu"
#include "broken.cu"

#include <string>
#include <tuple>
#include <utility>

namespace {

// What a kernel takes: p an address, i an integer, f a number. An argument in a wrong place is found by it.
template <class T>
char kind() {
    return std::is_pointer_v<T> ? 'p' : std::is_integral_v<T> ? 'i' : 'f';
}

template <class... A>
std::string kinds(void (*)(A...)) {
    return {kind<A>()...};
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
}

template <class... A>
const char* launch(void (*kernel)(A...), const char* given, unsigned x, unsigned y, void** arguments, bool reversed) {
    if (kinds(kernel) != given) return "arguments of other kinds than the kernel takes";
    auto run = [=] { call(kernel, arguments, std::index_sequence_for<A...>()); };
    return shim::launch(run, x, y, THREADS, reversed);
}

}  // namespace

// Null when the kernel ran, else why it did not.
extern "C" const char* fieldtune_launch(const char* name, const char* given, unsigned x, unsigned y, void** arguments,
                                        bool reversed) {
#define RUN(kernel) \
    if (!std::strcmp(name, #kernel)) return launch(kernel, given, x, y, arguments, reversed);
    RUN(ratio) RUN(ratio_backward) RUN(density_loss) RUN(density_loss_backward) RUN(priorities)
    RUN(td_target) RUN(twin_loss) RUN(twin_loss_backward) RUN(actor_value) RUN(actor_value_backward)
    RUN(policy_sample) RUN(policy_sample_backward)
    RUN(adam_polyak)
    RUN(normalise_images)
    RUN(bias_relu) RUN(layer_norm_relu) RUN(relu_backward) RUN(layer_norm_backward) RUN(column_sums) RUN(sum_members)
    RUN(broken_without_barrier) RUN(broken_reuse) RUN(broken_divergent) RUN(broken_mask) RUN(broken_race)
    RUN(broken_bounds)
    return "no kernel of this name";
}
