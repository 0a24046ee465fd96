import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import type { AskOptions, LoadOptions, OpenOptions } from '@llamavid/pipeline';
import { type Command, Option } from 'commander';

export interface ModelFlags {
  model?: string;
  device: NonNullable<LoadOptions['device']>;
  dtype: NonNullable<LoadOptions['dtype']>;
  load: NonNullable<LoadOptions['load']>;
  split: NonNullable<LoadOptions['split']>;
  tryAnyway?: boolean;
  threads?: number;
  quiet?: boolean;
}

export interface AnswerFlags {
  temperature: number;
  topP?: number;
  topK?: number;
  seed?: number;
  maxNewTokens: number;
  conversation?: string;
  kvCache: NonNullable<AskOptions['kvCache']>;
}

export interface SamplingFlags {
  fps?: number;
  frames?: number;
  start?: number;
  end?: number;
  strict?: boolean;
}

export interface MediaFlags extends SamplingFlags {
  maxVisualTokens?: number;
  subtitles: string;
  speechModel?: string;
  /** False for `--no-store`. */
  store?: string | false;
  storeBits: '16bit' | '8bit';
}

export type ChatFlags = ModelFlags & AnswerFlags & MediaFlags & { keepVisualPrefix?: boolean };
export type AskFlags = ModelFlags &
  AnswerFlags &
  MediaFlags & {
    questions?: string;
    json?: boolean;
    dryRun?: boolean;
    timeline?: 'json' | 'vtt';
    profile?: string;
  };

export function addModelFlags(command: Command): void {
  command
    .option(
      '--model <model>',
      'folder of the model, or name of one that `llamavid pull` fetched; `tiny` is the embedded one',
      'tiny',
    )
    .option(
      '--device <device>',
      'auto, cpu, cuda or cuda:N; several (cuda:0,cuda:1 or cuda,cpu) share the language model',
      device,
      'auto',
    )
    .addOption(dtypeOption())
    .option(
      '--load <bits>',
      '16bit leaves weights as they are; 8bit and 4bit round them while loading',
      oneOf('--load', ['16bit', '8bit', '4bit']),
      '16bit',
    )
    .option(
      '--split <way>',
      'several devices have whole layers each (layers), or a share of every layer (tensor)',
      oneOf('--split', ['layers', 'tensor']),
      'layers',
    )
    .option(
      '--threads <n>',
      'threads that compute (default: LLAMAVID_THREADS, else one a core that may be used)',
      parseWholeNumber('--threads', 1),
    )
    .option('--try-anyway', 'load and answer even where memory will not suffice')
    .option('--quiet', 'no progress on stderr');
}

export function dtypeOption(): Option {
  return new Option('--dtype <dtype>', 'auto, f32 (exact), bf16 or f16')
    .argParser(oneOf('--dtype', ['auto', 'f32', 'bf16', 'f16']))
    .default('auto');
}

export function addAnswerFlags(command: Command): void {
  command
    .option(
      '--temperature <t>',
      '0 takes the likeliest token, above 0 samples',
      parseNumber('--temperature', 0),
      0,
    )
    .option('--top-p <p>', 'sample among tokens that together reach this share', share)
    .option(
      '--top-k <k>',
      'sample among the k likeliest tokens; 0 is all (default: 50)',
      parseWholeNumber('--top-k', 0),
    )
    .option('--seed <n>', 'equal seeds give equal samples (default: 0)', parseWholeNumber('--seed', 0))
    .option(
      '--max-new-tokens <n>',
      'at most this many new tokens',
      parseWholeNumber('--max-new-tokens', 1),
      512,
    )
    .addOption(kvCacheOption())
    .option(
      '--conversation <template>',
      'conversation template (default: the model\'s, else "llava_v1", with subtitles "vicuna_v1")',
    );
}

export function kvCacheOption(): Option {
  return new Option(
    '--kv-cache <bits>',
    'keys and values of past positions in 16bit (as computed), 8bit or 4bit',
  )
    .argParser(oneOf('--kv-cache', ['16bit', '8bit', '4bit']))
    .default('16bit');
}

export function addMediaFlags(command: Command): void {
  addSamplingFlags(command);
  command
    .option(
      '--max-visual-tokens <n>',
      'thin the frames of each video out evenly until their tokens are no more',
      parseWholeNumber('--max-visual-tokens', 1),
    )
    .option(
      '--subtitles <file>',
      '.srt, .vtt or .ass file of the video; speech: what is heard in it; auto: the file beside it, else a text stream in it, else speech; or none',
      subtitles,
      'none',
    )
    .option(
      '--speech-model <whisper>',
      'Whisper model that hears speech, for --subtitles auto and speech (default: LLAMAVID_SPEECH_MODEL, else none)',
    )
    .option('--store <folder>', 'where visual features are kept, or none (default: see README)')
    .option('--no-store', 'keep no features')
    .addOption(precisionOption('--store-bits <n>'));
}

/** How a stored number is held. */
export function precisionOption(flags: string): Option {
  return new Option(flags, 'bits of a stored feature: 16, or 8, which rounds')
    .argParser((value: string) => {
      if (value === '16' || value === '8') return `${value}bit`;
      throw wrong(`${flags.split(' ')[0]} ${value} is not one of 16, 8`);
    })
    .default('16bit', '16');
}

export function addSamplingFlags(command: Command): void {
  command
    .option('--fps <n>', 'frames a second of video (default: 1)', positive('--fps'))
    .option('--frames <n>', 'exactly this many frames, instead of --fps', parseWholeNumber('--frames', 1))
    .option('--start <s>', 'second where sampling starts', parseNumber('--start', 0))
    .option('--end <s>', 'second where sampling ends', parseNumber('--end', 0))
    .option('--strict', 'damage in a file is an error instead of a note');
}

export function loadOptions(flags: ModelFlags, signal: AbortSignal): LoadOptions {
  const { device, dtype, load, split, tryAnyway, threads } = flags;
  // Read when the first device is opened.
  if (threads !== undefined) process.env['LLAMAVID_THREADS'] = String(threads);
  return { device, dtype, load, split, tryAnyway, signal };
}

export function samplingOptions({ fps, frames, start, end, strict }: SamplingFlags): SamplingFlags {
  if (fps !== undefined && frames !== undefined) {
    throw wrong('--fps and --frames exclude each other', 'Give one of them.');
  }
  if (start !== undefined && end !== undefined && end <= start) {
    throw wrong(`--end ${end} is not behind --start ${start}`);
  }
  return { fps, frames, start, end, strict } as SamplingFlags;
}

/** `paths` are the files that the flags are about. */
export function openOptions(flags: MediaFlags, paths: readonly string[], signal: AbortSignal): OpenOptions {
  const { maxVisualTokens, subtitles, speechModel, store, storeBits: storePrecision } = flags;
  const sampling = samplingOptions(flags);
  if (store === '') throw wrong('--store names no folder');
  if (namesFile(subtitles) && paths.length !== 1) {
    throw wrong(
      `--subtitles ${subtitles} is for one video, but ${paths.length} were given`,
      'Give the video that the subtitles belong to, and no other.',
    );
  }
  const kept = store === false ? 'none' : store;
  return { ...sampling, maxVisualTokens, subtitles, speechModel, store: kept, storePrecision, signal };
}

/** Checks the template's name against `templates`, before anything is loaded. */
export function askOptions(flags: AnswerFlags, templates: readonly string[]): AskOptions {
  const { temperature, topP, topK, seed, maxNewTokens, conversation, kvCache } = flags;
  if (conversation !== undefined && !templates.includes(conversation)) {
    throw wrong(
      `--conversation ${conversation}: no template has this name`,
      `Templates: ${templates.join(', ')}.`,
    );
  }
  return { temperature, topP, topK, seed, maxNewTokens, conversation, kvCache };
}

export function wrong(message: string, hint?: string): LlamaVidError {
  return new LlamaVidError('INVALID_ARGUMENT', message, hint === undefined ? {} : { hint });
}

export function device(value: string): string {
  if (/^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$/.test(value)) return value;
  throw wrong(
    `--device ${value}: no such device`,
    'Devices are auto, cpu, cuda and cuda:N; several with commas between share the language model.',
  );
}

function subtitles(value: string): string {
  if (value !== '') return value;
  throw wrong('--subtitles names no file', 'Give a file, auto, speech or none.');
}

/** Whether `--subtitles` is a file: those of these names are `./auto`, `./speech` and `./none`. */
function namesFile(subtitles: string): boolean {
  return !['auto', 'speech', 'none'].includes(subtitles);
}

/** The files of the command line: media and subtitles. */
export function filesOf(paths: readonly string[], { subtitles }: MediaFlags): readonly string[] {
  return namesFile(subtitles) ? [...paths, subtitles] : paths;
}

export function oneOf(flag: string, values: readonly string[]): (value: string) => string {
  return (value) => {
    if (values.includes(value)) return value;
    throw wrong(`${flag} ${value} is not one of ${values.join(', ')}`);
  };
}

export function parseNumber(flag: string, least: number): (value: string) => number {
  return (value) => {
    const number = value.trim() === '' ? Number.NaN : Number(value);
    if (Number.isFinite(number) && number >= least) return number;
    throw wrong(`${flag} ${value} is not a number of at least ${least}`);
  };
}

export function parseWholeNumber(flag: string, least: number): (value: string) => number {
  return (value) => {
    const number = value.trim() === '' ? Number.NaN : Number(value);
    if (Number.isSafeInteger(number) && number >= least) return number;
    throw wrong(`${flag} ${value} is not a whole number of at least ${least}`);
  };
}

export function positive(flag: string): (value: string) => number {
  return (value) => {
    const number = parseNumber(flag, 0)(value);
    if (number > 0) return number;
    throw wrong(`${flag} ${value} is not above 0`);
  };
}

function share(value: string): number {
  const number = positive('--top-p')(value);
  if (number <= 1) return number;
  throw wrong(`--top-p ${value} is above 1`);
}
