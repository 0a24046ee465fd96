import { defineConfig } from 'vitest/config';

// Videos are decoded, and a busy machine does that slowly.
// No test may find what another one, or this machine's user, has stored.
export default defineConfig({ test: { testTimeout: 60_000, env: { LLAMAVID_STORE: 'none' } } });
