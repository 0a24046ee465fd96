#!/usr/bin/env node
import process from 'node:process';
import { runCommandLine } from './command-line.js';

// Whoever reads the answer may leave before its end (`llamavid ask … | head -1`): that is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});
// Progress that nobody reads any more is no reason to stop.
process.stderr.on('error', () => {});

process.exitCode = await runCommandLine(process.argv.slice(2));
