// Camera images as the encoder wants them.
#include "common.cuh"

// Bytes (batch, height, width, channels) to numbers byte / 255, (batch, channels, height, width). With `shift`,
// (batch, 2) rows and columns, the image is read that much further down and right; outside it its border repeats.
KERNEL normalise_images(const unsigned char* bytes, const int* shift, int batch, int height, int width, int channels,
                        float* out) {
    int n = batch * channels * height * width;
    for (int i = FIRST; i < n; i += STRIDE) {
        int x = i % width, y = i / width % height, c = i / (width * height) % channels, b = i / (width * height * channels);
        if (shift) {
            y = min(max(y + shift[2 * b], 0), height - 1);
            x = min(max(x + shift[2 * b + 1], 0), width - 1);
        }
        out[i] = bytes[((b * height + y) * width + x) * channels + c] / 255.0f;
    }
}
