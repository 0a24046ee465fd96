import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    root: import.meta.dirname,
    include: ['tidy/*.test.ts', 'tiny/*.test.ts', 'bench/peers/*.test.ts', 'gpu/*.test.ts'],
    testTimeout: 600_000,
    hookTimeout: 600_000,
    fileParallelism: false,
    // No test may find what this machine's user has stored.
    env: { LLAMAVID_STORE: 'none' },
  },
});
