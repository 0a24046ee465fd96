import process from 'node:process';
import type { Lora, RecipeChanges, TrainingSummary } from '@llamavid/train';
import { type Command, Option } from 'commander';
import { device, oneOf, parseNumber, parseWholeNumber, positive, wrong } from './flags.js';
import { Interrupt } from './interrupt.js';
import { writeJson } from './write-answer.js';

export interface TrainFlags {
  model?: string;
  llm?: string;
  vision?: string;
  queryModel?: string;
  adapter?: string;
  processor?: string;
  bert?: string;
  data?: string;
  images?: string;
  videos?: string;
  output?: string;
  resume?: boolean;
  plan?: boolean;
  device: string;
  dtype?: 'f32' | 'bf16';
  learningRate?: number;
  batchSize?: number;
  accumulation?: number;
  devices?: number;
  epochs?: number;
  maxSteps?: number;
  maxLength?: number;
  seed?: number;
  saveEvery?: number;
  keep?: number;
  lora?: number | true;
  loraAlpha?: number;
  loraDropout?: number;
  loraTargets?: string[];
  loraApart?: boolean;
  failureLimit?: number;
  set: RecipeChanges;
  json?: boolean;
  quiet?: boolean;
}

export function addTrainFlags(command: Command): void {
  const share = (flag: string) => (value: string) => {
    const number = parseNumber(flag, 0)(value);
    if (number <= 1) return number;
    throw wrong(`${flag} ${value} is above 1`);
  };
  const whole = (flag: string) => parseWholeNumber(flag, 1);
  command
    .option('--model <folder>', 'LLaMA-VID folder to go on from (stage 3: what stage 2 wrote)')
    .option('--llm <folder>', 'base language model (stages 1 and 2)')
    .option('--vision <file>', 'vision tower: eva_vit_g.pth, or the folder of a CLIP model')
    .option('--query-model <file>', 'Q-Former: instruct_blip_vicuna7b_trimmed.pth (stage 1)')
    .option('--adapter <file>', 'mm_projector.bin of stage 1, or its folder (stage 2)')
    .option('--processor <folder>', 'image processor (default: looked for beside the models)')
    .option('--bert <folder>', 'word pieces of the query model (default: looked for beside the models)')
    .option('--data <file>', "list of records in LLaVA's JSON format")
    .option('--images <folder>', "folder of the records' pictures")
    .option('--videos <folder>', "folder of the records' videos and feature files")
    .option('-o, --output <folder>', 'folder for the result, checkpoints, metrics and charts')
    .option('--resume', 'go on with the run in the output folder')
    .option('--plan', 'print parameters, memory, steps and batches, and stop')
    .option('--device <device>', 'auto, cpu, cuda or cuda:N', device, 'auto')
    .option('--dtype <dtype>', 'f32 or bf16, instead of the recipe’s', oneOf('--dtype', ['f32', 'bf16']))
    .option('--learning-rate <rate>', 'instead of the recipe’s', positive('--learning-rate'))
    .option('--batch-size <n>', 'records of one batch on one device', whole('--batch-size'))
    .option('--accumulation <n>', 'batches of one step', whole('--accumulation'))
    .option(
      '--devices <n>',
      'devices whose batches make a step; this one computes them all',
      whole('--devices'),
    )
    .option('--epochs <n>', 'passes over the data', positive('--epochs'))
    .option('--max-steps <n>', 'stop after this many steps', whole('--max-steps'))
    .option('--max-length <n>', 'tokens of a record', parseWholeNumber('--max-length', 2))
    .option('--seed <n>', 'equal seeds give equal runs', parseWholeNumber('--seed', 0))
    .option('--save-every <n>', 'steps between checkpoints', whole('--save-every'))
    .option('--keep <n>', 'checkpoints that stay', whole('--keep'))
    .option(
      '--lora [rank]',
      'train low-rank additions to the language model (default rank: 64)',
      whole('--lora'),
    )
    .option('--lora-alpha <n>', 'their scale (default: twice the rank)', positive('--lora-alpha'))
    .option('--lora-dropout <p>', 'their dropout (default: 0.05)', share('--lora-dropout'))
    .option('--lora-targets <names>', 'projections that get one, by commas (default: all seven)', list)
    .option('--lora-apart', "write them by themselves in PEFT's format, instead of adding them to the model")
    .option(
      '--failure-limit <share>',
      'share of records that may fail (default: 0.1)',
      share('--failure-limit'),
    )
    .addOption(
      new Option('--set <field=value>', 'any field of the recipe: --set optimizer.gradientClip=1')
        .argParser(setField)
        .default({}, 'nothing'),
    )
    .option('--json', 'write one JSON object to stdout at the end')
    .option('--quiet', 'no progress on stderr');
}

/** `llamavid train`. */
export async function train(recipe: string, flags: TrainFlags): Promise<number> {
  if (flags.data === undefined) throw wrong('the list of records is missing', '--data <file>');
  using interrupt = new Interrupt();
  const { planText, planTraining, TerminalProgress, train } = await import('@llamavid/train');
  const { data, images, videos, model, resume, failureLimit, output } = flags;
  const options = {
    recipe,
    changes: changes(flags),
    ...{ data, images, videos, model, languageModel: flags.llm, visionTower: flags.vision },
    ...{ queryModel: flags.queryModel, adapter: flags.adapter, processor: flags.processor },
    ...{ queryTokenizer: flags.bert, device: flags.device, signal: interrupt.signal },
  };
  if (flags.plan) {
    const plan = await planTraining({ ...options, output });
    if (flags.json) writeJson(plan);
    else process.stdout.write(planText(plan));
    return 0;
  }
  if (output === undefined)
    throw wrong('the output folder is missing', '-o <folder>, or --plan to only look.');
  const progress = flags.quiet ? undefined : new TerminalProgress(process.stderr);
  progress?.phase('loading the model');
  const announce = () => progress?.phase('finishing the step; press again to stop at once');
  interrupt.signal.addEventListener('abort', announce, { once: true });
  let summary: TrainingSummary;
  try {
    const run = train({ ...options, output, resume, failureLimit });
    for await (const report of run) {
      progress?.step(report);
    }
    summary = await run.result();
  } finally {
    progress?.clear();
  }
  if (flags.json) writeJson(summary);
  else if (!flags.quiet) process.stdout.write(summaryText(summary));
  return 0;
}

/** What the flags change of the recipe; the fields of `--set` go first. */
function changes(flags: TrainFlags): RecipeChanges {
  const { dtype, learningRate, batchSize, accumulation, devices, epochs, maxSteps, maxLength, seed } = flags;
  const { set } = flags;
  return {
    ...set,
    ...(epochs !== undefined && { epochs }),
    ...(maxSteps !== undefined && { maxSteps }),
    ...(seed !== undefined && { seed }),
    optimizer: { ...set.optimizer, ...(learningRate !== undefined && { learningRate }) },
    data: { ...set.data, ...(maxLength !== undefined && { maxLength }) },
    compute: { ...set.compute, ...(dtype !== undefined && { dtype }) },
    batch: {
      ...set.batch,
      ...(batchSize !== undefined && { perDevice: batchSize }),
      ...(accumulation !== undefined && { accumulation }),
      ...(devices !== undefined && { devices }),
    },
    checkpoints: {
      ...set.checkpoints,
      ...(flags.saveEvery !== undefined && { everySteps: flags.saveEvery }),
      ...(flags.keep !== undefined && { keep: flags.keep }),
    },
    ...lora(flags),
  };
}

/** The usual choices where a flag is silent. */
function lora({ lora, loraAlpha, loraDropout, loraTargets, loraApart }: TrainFlags): { lora?: Lora } {
  if (lora === undefined) {
    if ([loraAlpha, loraDropout, loraTargets, loraApart].some((setting) => setting !== undefined)) {
      throw wrong('LoRA’s settings need LoRA', '--lora [rank]');
    }
    return {};
  }
  const rank = lora === true ? 64 : lora;
  const targets = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'];
  return {
    lora: {
      rank,
      alpha: loraAlpha ?? 2 * rank,
      dropout: loraDropout ?? 0.05,
      targets: loraTargets ?? targets,
      merge: loraApart !== true,
    },
  };
}

function list(value: string): string[] {
  return value.split(',').map((name) => name.trim());
}

/** `optimizer.gradientClip=1`; the value is JSON, or else a text. */
function setField(assignment: string, earlier: RecipeChanges): RecipeChanges {
  const [, path = '', text = ''] = /^([A-Za-z.]+)=(.*)$/s.exec(assignment) ?? [];
  if (path === '' || path.split('.').includes('')) {
    throw wrong(`--set ${assignment} is not of the form field=value`, '--set optimizer.gradientClip=1');
  }
  let value: unknown = text;
  try {
    value = JSON.parse(text);
  } catch {
    // A text needs no quotes.
  }
  const changed: Record<string, unknown> = structuredClone(earlier);
  const names = path.split('.');
  let place = changed;
  for (const name of names.slice(0, -1)) {
    const inner = Object.hasOwn(place, name) ? place[name] : {};
    if (typeof inner !== 'object' || inner === null)
      throw wrong(`--set ${assignment}: ${name} is no group of fields`);
    place[name] = inner;
    place = inner as Record<string, unknown>;
  }
  Object.defineProperty(place, names.at(-1) as string, {
    value,
    enumerable: true,
    configurable: true,
    writable: true,
  });
  return changed;
}

function summaryText(summary: TrainingSummary): string {
  const { output, steps, loss, samples, tokens, frames, seconds, failures } = summary;
  const speed = `${summary.tokensPerSecond.toFixed(1)} tokens/s, ${summary.framesPerSecond.toFixed(1)} frames/s`;
  return `${steps} steps, ${samples} records, ${tokens} tokens, ${frames} frames in ${seconds.toFixed(1)} s (${speed})
loss ${loss === null ? '–' : loss.toPrecision(5)}, ${failures.length} records failed
written to ${output}: the stage's files, metrics.jsonl, TensorBoard events, loss.svg, report.html
`;
}
