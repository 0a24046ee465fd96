import process from 'node:process';
import type { Command } from 'commander';
import {
  addModelFlags,
  loadOptions,
  type ModelFlags,
  oneOf,
  parseWholeNumber,
  precisionOption,
  wrong,
} from './flags.js';
import { Interrupt } from './interrupt.js';
import { Progress } from './progress.js';

interface MovieFlags extends Omit<ModelFlags, 'tryAnyway'> {
  output?: string;
  format: 'store' | 'pkl';
  chunk: number;
  index: number;
  bits: '16bit' | '8bit';
  json?: boolean;
}

export function addMovieFeatures(command: Command, end: (exitCode: number) => void): void {
  command
    .argument('<videos>', 'folder of the tars of key frames, ID.tar')
    .argument('<files>', 'folder with shot/ID.txt, meta/ID.json, subtitle/ID.srt and script/ID.script')
    .usage('[options] <videos> <files>');
  addModelFlags(command);
  command
    .option('-o, --output <folder>', 'the store (default: where `ask` looks), or the folder of the pickles')
    .option(
      '--format <format>',
      "store, or pkl: a file for each movie in the reference's layout",
      oneOf('--format', ['store', 'pkl']),
      'store',
    )
    .option(
      '--chunk <n>',
      'cut the movies into so many parts of equal size, …',
      parseWholeNumber('--chunk', 1),
      1,
    )
    .option('--index <i>', '… and work on this one, from 0 on', parseWholeNumber('--index', 0), 0)
    .addOption(precisionOption('--bits <n>'))
    .option('--json', 'write one JSON object a movie to stdout instead of text')
    .action(async (videos: string, files: string, flags: MovieFlags) =>
      end(await movieFeatures(videos, files, flags)),
    );
}

/** `llamavid movie-features`: what became of each movie, a line each; 1 where one failed. */
async function movieFeatures(videos: string, files: string, flags: MovieFlags): Promise<number> {
  using interrupt = new Interrupt();
  const { model, output, format, chunk, index, bits: storePrecision } = flags;
  const { tryAnyway: _, ...toLoad } = loadOptions(flags, interrupt.signal);
  if (format === 'pkl' && output === undefined) {
    throw wrong('the folder of the pickles is missing', 'Give it with -o.');
  }
  const where = format === 'pkl' ? { pickles: output } : { store: output, storePrecision };
  // The addon is loaded here and not for `--help`.
  const { extractMovies } = await import('@llamavid/pipeline');
  const progress = new Progress(flags.quiet ?? false);
  let failed = 0;
  try {
    progress.step('loading the visual encoder');
    const movies = extractMovies(videos, files, {
      ...toLoad,
      ...where,
      model,
      chunk,
      index,
      onMovie: (id, done, total) => progress.step(`${id}, movie ${done + 1} of ${total}`),
      onProgress: (...frames) => progress.frames(...frames),
    });
    for await (const { id, state, path, frames, dropped, notes, error } of movies) {
      for (const note of notes) progress.note(`${id}: ${note}`);
      progress.clear();
      if (state === 'failed') failed += 1;
      if (flags.json) {
        const told = error && { code: error.code, message: error.message, hint: error.hint ?? null };
        process.stdout.write(
          `${JSON.stringify({ id, state, path, frames, dropped, notes, ...(told && { error: told }) })}\n`,
        );
        continue;
      }
      const count = frames === undefined ? '' : `, ${frames} frames`;
      const what =
        error === undefined
          ? `${state}${count}${path === undefined ? '' : `: ${path}`}`
          : `failed: ${error.message}`;
      process.stdout.write(`${id}: ${what}\n`);
    }
  } finally {
    progress.clear();
  }
  return failed === 0 ? 0 : 1;
}
