import { defineConfig } from 'vitest/config';

// Each test starts processes, and a busy machine starts them slowly.
// No test may find what another one, or this machine's user, has stored.
export default defineConfig({ test: { testTimeout: 60_000, env: { LLAMAVID_STORE: 'none' } } });
