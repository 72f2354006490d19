// One module with every kernel.
#include "critic.cu"
#include "density.cu"
#include "image.cu"
#include "optimiser.cu"
#include "policy.cu"
#include "stack.cu"
