import { defineConfig } from 'vitest/config';

// Videos are decoded, and a busy machine does that slowly.
export default defineConfig({ test: { testTimeout: 60_000 } });
