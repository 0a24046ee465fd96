import process from 'node:process';
import type { ConvertOptions } from '@llamavid/convert';
import type { Command } from 'commander';
import { oneOf, wrong } from './flags.js';
import { Interrupt } from './interrupt.js';
import { Progress } from './progress.js';
import { writeJson } from './write-answer.js';

interface ConvertFlags {
  output?: string;
  dtype?: NonNullable<ConvertOptions['dtype']>;
  quantize?: NonNullable<ConvertOptions['quantize']>;
  interleave?: boolean;
  quantizeVision?: boolean;
  json?: boolean;
  quiet?: boolean;
}

const DTYPES = ['f16', 'bf16', 'f32'];
const FORMATS = ['q8_0', 'q4_0', 'q4_k', 'q5_k', 'q6_k'];

/** `llamavid convert`. */
export function addConvert(command: Command, end: (exitCode: number) => void): void {
  command
    .argument('<inputs...>', 'files and folders of the model, in any order; known by their content')
    .usage('[options] <inputs...> -o <folder>')
    .option('-o, --output <folder>', 'the folder to make; must not be there yet')
    .option(
      '--dtype <dtype>',
      `${DTYPES.join(', ')} (default: each weight keeps its own)`,
      oneOf('--dtype', DTYPES),
    )
    .option(
      '--quantize <format>',
      `the language model in blocks, as a GGUF file: ${FORMATS.join(', ')}`,
      oneOf('--quantize', FORMATS),
    )
    .option(
      '--interleave',
      'order these blocks, or those of a GGUF file, as they are read quickest here; llama.cpp cannot read them then',
    )
    .option('--quantize-vision', 'visual encoder and token generator in 8 bits')
    .option('--json', 'write one JSON object to stdout instead of text')
    .option('--quiet', 'no progress on stderr')
    .addHelpText(
      'after',
      `
Inputs are: a LLaMA-VID folder; or a language model (folder or GGUF file), eva_vit_g.pth and what stage 1 wrote
(mm_projector.bin with config.json beside it). An image processor's folder and one with vocab.txt (bert-base-uncased)
are looked for beside them when they are not named.`,
    )
    .action(async (inputs: string[], flags: ConvertFlags) => end(await convertModel(inputs, flags)));
}

async function convertModel(inputs: string[], flags: ConvertFlags): Promise<number> {
  const { output, dtype, quantize, interleave, quantizeVision } = flags;
  if (output === undefined || output.trim() === '')
    throw wrong('the output folder is missing', '-o <folder>');
  using interrupt = new Interrupt();
  const { convert } = await import('@llamavid/convert');
  const progress = new Progress(flags.quiet ?? false);
  progress.step('looking at the inputs');
  try {
    const made = await convert(inputs, output, {
      dtype,
      quantize,
      interleave,
      quantizeVision,
      signal: interrupt.signal,
      onProgress: ({ done, total }) => progress.bytes('writing', done, total),
    });
    progress.clear();
    for (const note of made.notes) progress.note(note);
    if (flags.json) writeJson(made);
    else {
      process.stdout.write(`${made.tensors} weights, ${gigabytes(made.bytes)}: ${made.folder}\n`);
    }
  } finally {
    progress.clear();
  }
  return 0;
}

/** `1.35 GB`; the sizes here are those of files. */
export function gigabytes(bytes: number): string {
  return bytes < 1e7 ? `${(bytes / 1e6).toFixed(2)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
