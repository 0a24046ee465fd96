import { rename, rm, writeFile } from 'node:fs/promises';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import type { SpeechLoadOptions } from '@llamavid/speech';
import type { Command } from 'commander';
import { device, dtypeOption, parseWholeNumber, wrong } from './flags.js';
import { Interrupt } from './interrupt.js';
import { checkFiles } from './media-files.js';
import { Progress } from './progress.js';
import { writeJson } from './write-answer.js';

interface TranscribeFlags {
  model?: string;
  output?: string;
  language?: string;
  device: string;
  dtype: NonNullable<SpeechLoadOptions['dtype']>;
  seed?: number;
  json?: boolean;
  quiet?: boolean;
}

/** `llamavid transcribe`. */
export function addTranscribe(command: Command, end: (exitCode: number) => void): void {
  command
    .argument('<video>', 'a video or sound file')
    .usage('[options] <video> --model <whisper>')
    .option('--model <whisper>', 'folder of a Whisper model, or its .pt file with the vocabulary beside it')
    .option('-o, --output <file>', 'the .srt or .vtt file to write (default: .srt on stdout)')
    .option('--language <code>', 'the language spoken, `en` for instance (default: told from the sound)')
    .option('--device <device>', 'auto, cpu, cuda or cuda:N', device, 'auto')
    .addOption(dtypeOption())
    .option(
      '--seed <n>',
      'equal seeds give equal texts where a text is drawn (default: 0)',
      parseWholeNumber('--seed', 0),
    )
    .option('--json', 'write one JSON object to stdout instead of text')
    .option('--quiet', 'no progress on stderr')
    .action(async (video: string, flags: TranscribeFlags) => end(await transcribe(video, flags)));
}

async function transcribe(video: string, flags: TranscribeFlags): Promise<number> {
  const { model: path, output, language, device, dtype, seed } = flags;
  if (path === undefined) throw wrong('the speech model is missing', '--model <folder of a Whisper model>');
  const ending = output === undefined ? '.srt' : /\.(srt|vtt)$/i.exec(output)?.[0].toLowerCase();
  if (ending === undefined) throw wrong(`-o ${output}: subtitles are written as .srt or .vtt`);
  checkFiles([video]);
  using interrupt = new Interrupt();
  const { signal } = interrupt;
  const { SpeechModel, toSrt, toWebVtt } = await import('@llamavid/speech');
  const progress = new Progress(flags.quiet ?? false);
  try {
    progress.step('loading the speech model');
    using model = await SpeechModel.load(path, { device, dtype, signal });
    progress.step('listening');
    const transcript = await model.transcribe(video, {
      language,
      seed,
      signal,
      onProgress: ({ done, total }) =>
        progress.count('writing down seconds', Math.floor(done), Math.floor(total)),
    });
    for (const note of transcript.notes) progress.note(note);
    progress.clear();
    const text = (ending === '.vtt' ? toWebVtt : toSrt)(transcript.subtitles);
    if (output !== undefined) await writeWhole(output, text);
    if (flags.json) writeJson(transcript);
    else if (output === undefined) process.stdout.write(text);
    else process.stdout.write(`${transcript.subtitles.length} subtitles: ${output}\n`);
  } finally {
    progress.clear();
  }
  return 0;
}

/** Writes a file that is whole or not there. */
async function writeWhole(file: string, text: string): Promise<void> {
  const temporary = `${file}.${process.pid}.writing`;
  try {
    await writeFile(temporary, text);
    await rename(temporary, file);
  } catch (error) {
    await rm(temporary, { force: true });
    const { code, message } = error as NodeJS.ErrnoException;
    const isFull = code === 'ENOSPC' || code === 'EDQUOT';
    throw new LlamaVidError(
      isFull ? 'DISK_FULL' : 'INVALID_ARGUMENT',
      `${file} cannot be written: ${message}`,
      { hint: isFull ? 'Free some space.' : 'Choose a path that this user may write to.', cause: error },
    );
  }
}
