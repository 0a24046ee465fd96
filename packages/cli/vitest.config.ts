import { defineConfig } from 'vitest/config';

// Each test starts processes, and a busy machine starts them slowly.
export default defineConfig({ test: { testTimeout: 60_000 } });
