import process from 'node:process';
import type { NeverTrained, Phrasing, WorldKind } from '@llamavid/world';
import type { Command } from 'commander';
import { oneOf, parseWholeNumber, wrong } from './flags.js';
import { Interrupt } from './interrupt.js';
import { Progress } from './progress.js';
import { writeJson } from './write-answer.js';

interface WorldRenderFlags {
  seed: number;
  count: number;
  kinds: WorldKind[];
  neverTrained: NeverTrained;
  phrasing: Phrasing;
  json?: boolean;
  quiet?: boolean;
}

const KINDS = ['image', 'clip', 'multi', 'long', 'needle'];

/** `llamavid world render`. */
export function addWorldRender(command: Command, end: (exitCode: number) => void): void {
  command
    .argument('<folder>', 'where to write; made if missing')
    .option('--seed <n>', 'equal seeds give equal files', parseWholeNumber('--seed', 0), 0)
    .option('--count <n>', 'files of each kind', parseWholeNumber('--count', 1), 10)
    .option('--kinds <kinds>', `some of ${KINDS.join(',')}`, kinds, ['image', 'clip', 'multi'])
    .option(
      '--never-trained <choice>',
      'pairs of colour and shape that training leaves out: forbid, allow or only',
      oneOf('--never-trained', ['forbid', 'allow', 'only']),
      'forbid',
    )
    .option(
      '--phrasing <choice>',
      'phrasings that training uses, never uses, or both: trained, unseen or mixed',
      oneOf('--phrasing', ['trained', 'unseen', 'mixed']),
      'trained',
    )
    .option('--json', 'write one JSON object to stdout instead of text')
    .option('--quiet', 'no progress on stderr')
    .action(async (folder: string, flags: WorldRenderFlags) => end(await worldRender(folder, flags)));
}

async function worldRender(folder: string, flags: WorldRenderFlags): Promise<number> {
  if (folder.trim() === '') throw wrong('the folder is empty', 'Name the folder to write to.');
  using interrupt = new Interrupt();
  const { renderWorld } = await import('@llamavid/world');
  const progress = new Progress(flags.quiet ?? false);
  const { seed, count, kinds, neverTrained, phrasing } = flags;
  try {
    const world = await renderWorld({
      folder,
      seed,
      count,
      kinds,
      neverTrained,
      phrasing,
      signal: interrupt.signal,
      onProgress: ({ done, total }) => progress.count('files', done, total),
    });
    progress.clear();
    const { files, lists, questions, seconds } = world;
    if (flags.json) writeJson({ folder, seed, files, lists, questions, seconds });
    else {
      process.stdout.write(
        `${files.length} files, ${seconds} s of video, ${questions} questions: ${folder}\n`,
      );
    }
  } finally {
    progress.clear();
  }
  return 0;
}

function kinds(value: string): string[] {
  return value.split(',').map((kind) => oneOf('--kinds', KINDS)(kind.trim()));
}
