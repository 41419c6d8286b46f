/* One sample of online learning with backprop and Oja's rule, written out by hand: what a compiler makes of the plain
 * loops on one core. Weights of a layer are (n_in, n_out), row by row; softplus units of sharpness 10, softmax read-out.
 * Two passes over the weights: the forward product, and one that takes W y and W e of a row before it changes that row.
 */
#include <math.h>
#include <string.h>

static float softplus(float z) { return (fmaxf(10.0f * z, 0.0f) + log1pf(expf(-fabsf(10.0f * z)))) / 10.0f; }

/* weights: all layers one after the other; activity: room for the sum of widths; errors: room for twice the widest. */
void learn(int layers, const int *widths, float *weights, float *activity, float *errors, int widest,
           const float *images, const int *labels, const int *order, int samples, float eta, float theta) {
  for (int s = 0; s < samples; s++) {
    const float *x = images + (long)order[s] * widths[0];
    memcpy(activity, x, sizeof(float) * widths[0]);
    float *y = activity, *w = weights;
    for (int l = 0; l < layers; l++) {
      const int n = widths[l], m = widths[l + 1];
      float *restrict z = y + n;
      memset(z, 0, sizeof(float) * m);
      for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) z[j] += y[i] * w[(long)i * m + j];
      if (l < layers - 1) {
        for (int j = 0; j < m; j++) z[j] = softplus(z[j]);
      } else {
        float most = z[0], sum = 0;
        for (int j = 1; j < m; j++) most = fmaxf(most, z[j]);
        for (int j = 0; j < m; j++) sum += z[j] = expf(z[j] - most);
        for (int j = 0; j < m; j++) z[j] /= sum;
      }
      y = z;
      w += (long)n * m;
    }
    float *restrict e = errors, *restrict below = errors + widest;
    for (int j = 0; j < widths[layers]; j++) e[j] = y[j] - (j == labels[order[s]]);
    for (int l = layers - 1; l >= 0; l--) {
      const int n = widths[l], m = widths[l + 1];
      const float *restrict pre = y - n, *restrict post = y;
      w -= (long)n * m;
      for (int i = 0; i < n; i++) {
        float *restrict row = w + (long)i * m;
        float wy = 0, we = 0;
        for (int j = 0; j < m; j++) wy += row[j] * post[j];
        if (l > 0)
          for (int j = 0; j < m; j++) we += row[j] * e[j];
        const float a = theta * (pre[i] - wy), b = eta * pre[i];
        for (int j = 0; j < m; j++) row[j] += a * post[j] - b * e[j];
        below[i] = we * (1.0f - expf(-10.0f * pre[i]));
      }
      y -= n;
      if (l > 0) memcpy(e, below, sizeof(float) * n);
    }
  }
}
