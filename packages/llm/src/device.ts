import { callNative, Device } from '@llamavid/native';

/** A device that can be used. */
export interface DeviceDescription {
  /** `cpu` or `cuda:N`. */
  name: string;
  kind: 'cpu' | 'cuda';
}

/** Which device a name stands for; `DEVICE_UNAVAILABLE` when there is no such one. */
export function describeDevice(name = 'auto'): DeviceDescription {
  using device = callNative(() => Device.open(name));
  return { name: device.name, kind: device.kind };
}
