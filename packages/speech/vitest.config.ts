import { defineConfig } from 'vitest/config';

// A model writes token by token, and a busy machine slowly.
export default defineConfig({ test: { testTimeout: 60_000 } });
