#!/usr/bin/env node
import { enableCompileCache } from 'node:module';
import process from 'node:process';

// Compiled modules stay for the next start, which is a tenth of the time to the first token of a small model.
enableCompileCache();

// Whoever reads the answer may leave before its end (`llamavid ask … | head -1`): that is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});
// Progress that nobody reads any more is no reason to stop.
process.stderr.on('error', () => {});

const { runCommandLine } = await import('./command-line.js');
process.exitCode = await runCommandLine(process.argv.slice(2));
