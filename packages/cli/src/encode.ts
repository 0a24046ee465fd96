import { basename } from 'node:path';
import process from 'node:process';
import type { Command } from 'commander';
import {
  addModelFlags,
  addSamplingFlags,
  loadOptions,
  type ModelFlags,
  precisionOption,
  type SamplingFlags,
  samplingOptions,
} from './flags.js';
import { Interrupt } from './interrupt.js';
import { checkFiles } from './media-files.js';
import { Progress } from './progress.js';
import { samplingToJson } from './sampling-to-json.js';

interface EncodeFlags extends Omit<ModelFlags, 'tryAnyway'>, SamplingFlags {
  output?: string;
  bits: '16bit' | '8bit';
  json?: boolean;
}

export function addEncode(command: Command, end: (exitCode: number) => void): void {
  command.argument('<media...>', 'videos, pictures, folders or tars of frames');
  command.usage('[options] <media...>');
  addModelFlags(command);
  addSamplingFlags(command);
  command
    .option('-o, --output <folder>', 'the store (default: where `ask` looks, see README)')
    .addOption(precisionOption('--bits <n>'))
    .option('--json', 'write one JSON object a video to stdout instead of text')
    .action(async (paths: string[], flags: EncodeFlags) => end(await encode(paths, flags)));
}

/** `llamavid encode`: fills the store, so that questions begin at once. */
async function encode(paths: readonly string[], flags: EncodeFlags): Promise<number> {
  using interrupt = new Interrupt();
  const { model, output: store, bits: storePrecision } = flags;
  const { tryAnyway: _, ...toLoad } = loadOptions(flags, interrupt.signal);
  const sampling = samplingOptions(flags);
  checkFiles(paths);
  // The addon is loaded here and not for `--help`.
  const { encodeVideos } = await import('@llamavid/pipeline');
  const progress = new Progress(flags.quiet ?? false);
  try {
    progress.step('loading the visual encoder');
    const videos = encodeVideos(paths, {
      ...toLoad,
      ...sampling,
      model,
      store,
      storePrecision,
      onVideo: (path) => progress.step(`opening ${basename(path)}`),
      onProgress: (...frames) => progress.frames(...frames),
    });
    for await (const { path, store, key, sampling, work, timings } of videos) {
      for (const note of sampling.notes) progress.note(note);
      progress.clear();
      if (flags.json) {
        const encoded = { path, store, key, sampling: samplingToJson(sampling), work, timings };
        process.stdout.write(`${JSON.stringify(encoded)}\n`);
      } else {
        const how = work.storeHit ? 'stored already' : `${work.framesEncoded} encoded now`;
        process.stdout.write(`${path}: ${sampling.frames} frames, ${how} (${key} in ${store})\n`);
      }
    }
  } finally {
    progress.clear();
  }
  return 0;
}
