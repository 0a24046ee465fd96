/** The architectures that addons with CUDA are built for, each with the name of its package behind `@llamavid/native-`. */
export const platforms: Readonly<Record<string, string>> = {
  sm_90a: 'linux-x64-gnu-cuda',
  sm_89: 'linux-x64-gnu-cuda-sm89',
  sm_80: 'linux-x64-gnu-cuda-sm80',
};

/** What they run on, as Rust names it. */
export const target = 'x86_64-unknown-linux-gnu';
