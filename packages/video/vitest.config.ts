import { defineConfig } from 'vitest/config';

// Decoding on a busy machine takes its time; a hang is what the limit is for.
export default defineConfig({
  test: { include: ['test/**/*.test.ts'], testTimeout: 60_000, hookTimeout: 60_000 },
});
