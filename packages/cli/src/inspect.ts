import process from 'node:process';
import type { Inspection } from '@llamavid/convert';
import type { Command } from 'commander';
import { gigabytes } from './convert.js';
import { Interrupt } from './interrupt.js';
import { writeJson } from './write-answer.js';

interface InspectFlags {
  verify?: boolean;
  json?: boolean;
}

/** `llamavid inspect`: exits with 1 when something is wrong. */
export function addInspect(command: Command, end: (exitCode: number) => void): void {
  command
    .argument('<path>', "a model's folder, or a file of weights")
    .option('--verify', 'compare the checksums of a converted folder, which reads all of it')
    .option('--json', 'write one JSON object to stdout instead of text')
    .action(async (path: string, flags: InspectFlags) => end(await inspectModel(path, flags)));
}

async function inspectModel(path: string, flags: InspectFlags): Promise<number> {
  using interrupt = new Interrupt();
  const { inspect } = await import('@llamavid/convert');
  const found = await inspect(path, { verify: flags.verify, signal: interrupt.signal });
  if (flags.json) writeJson(found);
  else process.stdout.write(inspectionText(found));
  return found.problems.length > 0 ? 1 : 0;
}

function inspectionText(found: Inspection): string {
  const lines = [`${found.path}${found.converted ? ', converted' : ''}${found.verified ? ', verified' : ''}`];
  for (const { name, config, parameters, bytes, dtypes, source } of found.parts) {
    const sizes = Object.entries(config).map(([key, value]) => `${key} ${value}`);
    const kinds = Object.entries(dtypes).map(([dtype, count]) => `${count} ${dtype}`);
    lines.push(`${name}: ${millions(parameters)} parameters, ${gigabytes(bytes)} (${kinds.join(', ')})`);
    lines.push(`  ${sizes.join(', ')}`);
    if (source !== null && source !== found.path) lines.push(`  from ${source}`);
  }
  for (const { name, path, optional } of found.sideFiles) {
    lines.push(path === null ? `${optional ? 'none   ' : 'MISSING'} ${name}` : `found   ${name}: ${path}`);
  }
  for (const { name, dtype, shape } of found.tensors) {
    lines.push(`${name}: ${dtype ?? 'unreadable'} [${shape.join(', ')}]`);
  }
  for (const { code, message, hint } of found.problems) {
    lines.push(`error: ${message} [${code}]`);
    if (hint !== null) lines.push(`hint: ${hint}`);
  }
  return `${lines.join('\n')}\n`;
}

function millions(count: number): string {
  return count < 1e9 ? `${(count / 1e6).toFixed(2)} M` : `${(count / 1e9).toFixed(2)} G`;
}
