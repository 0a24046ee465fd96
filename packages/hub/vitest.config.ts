import { defineConfig } from 'vitest/config';

// Some tests start processes or wait for a lock whose owner was killed, and a busy machine does so slowly.
export default defineConfig({ test: { testTimeout: 180_000 } });
