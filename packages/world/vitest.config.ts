import { defineConfig } from 'vitest/config';

// Long videos are thousands of frames, and a busy machine encodes them slowly.
export default defineConfig({ test: { testTimeout: 120_000, hookTimeout: 120_000 } });
