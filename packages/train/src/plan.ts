import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { callNativeAsync, planTraining as nativePlan } from '@llamavid/native';
import { readReports } from './metrics-log.js';
import type { Recipe } from './recipe.js';
import { countText, durationText, sizeText } from './text.js';
import { type PlanOptions, resolveOptions } from './train-options.js';

/** A part of the model. */
export interface PlannedPart {
  name: string;
  parameters: number;
  /** How many of them train. */
  trained: number;
}

/** What a run would do, told without reading weights or media. */
export interface TrainingPlan {
  recipe: Recipe;
  records: number;
  /** Records of one step. */
  recordsPerStep: number;
  /** Batches that this device computes one after another for one step. */
  batchesPerStep: number;
  steps: number;
  warmupSteps: number;
  parts: PlannedPart[];
  parameters: number;
  trained: number;
  /** Bytes. Activations are those of one batch, estimated from the sizes. */
  memory: { weights: number; gradients: number; optimizer: number; activations: number; total: number };
  /**
   * Positions that the language model reads in the whole run, estimated from some of the records; a video counts as
   * one frame, since its length is not known before it is opened.
   */
  tokens: number;
  /** Multiply-adds of the language model in the whole run, forward and backward, estimated from `tokens`. */
  multiplyAdds: number;
  /** Seconds, as fast as the run that `output` holds; null where there is none. */
  seconds: number | null;
}

/** Says what a run would do. */
export async function planTraining(options: PlanOptions): Promise<TrainingPlan> {
  const { recipe, inputs } = resolveOptions(options);
  const plan = JSON.parse(await callNativeAsync(() => nativePlan(JSON.stringify({ recipe, inputs }))));
  return { recipe, ...plan, seconds: secondsOf(options.output, plan.steps) };
}

/** A run's time by the median of the steps that it has done. */
function secondsOf(output: string | undefined, steps: number): number | null {
  const path = output === undefined ? undefined : join(output, 'metrics.jsonl');
  if (path === undefined || !existsSync(path)) return null;
  const measured = readReports(path).map(({ seconds }) => seconds);
  const median = measured.sort((a, b) => a - b)[Math.floor(measured.length / 2)];
  return median === undefined ? null : median * steps;
}

/** The plan as lines of text. */
export function planText(plan: TrainingPlan): string {
  const { recipe, memory } = plan;
  const { perDevice, accumulation, devices } = recipe.batch;
  const { kind, learningRate, schedule, gradientClip } = recipe.optimizer;
  const rows: [string, string][] = [
    ['recipe', `${recipe.name}: ${recipe.title}`],
    ['stage', `${recipe.stage}, ${recipe.model.bertType}, template ${recipe.data.template}`],
    ...plan.parts.map(({ name, parameters, trained }): [string, string] => [
      name,
      `${countText(parameters)} parameters, ${trained === 0 ? 'frozen' : trained === parameters ? 'trained' : `${countText(trained)} trained`}`,
    ]),
    ['all parts', `${countText(plan.parameters)} parameters, ${countText(plan.trained)} trained`],
    ...(recipe.lora
      ? [['LoRA', `rank ${recipe.lora.rank}, alpha ${recipe.lora.alpha}`] as [string, string]]
      : []),
    [
      'memory',
      `${sizeText(memory.total)}: weights ${sizeText(memory.weights)}, gradients ${sizeText(memory.gradients)}, optimizer ${sizeText(memory.optimizer)}, activations about ${sizeText(memory.activations)}`,
    ],
    [
      'records',
      `${plan.records.toLocaleString('en')}, ${recipe.epochs} ${recipe.epochs === 1 ? 'epoch' : 'epochs'}`,
    ],
    [
      'records a step',
      `${perDevice} per device × ${accumulation} accumulated × ${devices} devices = ${plan.recordsPerStep}` +
        (plan.batchesPerStep > 1 ? `, computed here as ${plan.batchesPerStep} batches of ${perDevice}` : ''),
    ],
    ['steps', `${plan.steps.toLocaleString('en')}, of which ${plan.warmupSteps} warm up`],
    [
      'optimizer',
      `${kind}, rate ${learningRate}, ${schedule}, ${gradientClip === null ? 'no clipping' : `clipped at ${gradientClip}`}`,
    ],
    [
      'computed in',
      `${recipe.compute.dtype}${recipe.compute.activationCheckpointing ? ', activations computed twice' : ''}`,
    ],
    ['tokens', `about ${countText(plan.tokens)} (a video counted as one frame)`],
    ['work', `about ${plan.multiplyAdds.toExponential(1)} multiply-adds in the language model`],
    [
      'time',
      plan.seconds === null
        ? 'not known before some steps are done'
        : `about ${durationText(plan.seconds)}, as fast as the run in the output folder`,
    ],
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return `${rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n')}\n`;
}
