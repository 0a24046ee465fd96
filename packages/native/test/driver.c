// What the addon asks of NVIDIA's driver, answered as the test wants it: START is what cuInit gives, VERSION, MAJOR and MINOR
// what the driver and its devices are, of which there are COUNT.
#include <stdio.h>
#include <string.h>

int cuInit(unsigned flags) {
  (void)flags;
  return START;
}
int cuDriverGetVersion(int *version) {
  *version = VERSION;
  return 0;
}
int cuDeviceGetCount(int *count) {
  *count = COUNT;
  return 0;
}
int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  *value = attribute == 75 ? MAJOR : attribute == 76 ? MINOR : 0;
  return 0;
}
int cuDeviceGetName(char *name, int length, int device) {
  (void)device;
  snprintf(name, length, "a device of the test");
  return 0;
}
int cuDeviceGetUuid(char *uuid, int device) {
  (void)device;
  memset(uuid, 1, 16);
  return 0;
}
int cuGetErrorName(int error, const char **name) {
  *name = error == 100 ? "CUDA_ERROR_NO_DEVICE" : error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN";
  return 0;
}
int cuGetErrorString(int error, const char **text) {
  return cuGetErrorName(error, text);
}
