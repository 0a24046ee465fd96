import { existsSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import { changeRecipe, checkRecipe, loadRecipe, type Recipe, type RecipeChanges } from './recipe.js';

/** The files and folders that a run reads. */
export interface TrainingInputs {
  /** A LLaMA-VID folder to go on from: what stage 2 wrote, for stage 3. */
  model?: string | undefined;
  /** Folder of the base language model (stages 1 and 2). */
  languageModel?: string | undefined;
  /** `eva_vit_g.pth`, or the folder of a CLIP model. */
  visionTower?: string | undefined;
  /** The Q-Former's file, `instruct_blip_vicuna7b_trimmed.pth` (stage 1). */
  queryModel?: string | undefined;
  /** Stage 1's `mm_projector.bin`, or its folder (stage 2). */
  adapter?: string | undefined;
  /** Folder of the image processor. Default: looked for beside the model and the vision tower. */
  processor?: string | undefined;
  /** Folder with the query model's word pieces (`bert-base-uncased`). Default: looked for beside the model. */
  queryTokenizer?: string | undefined;
  /** The list of records, in LLaVA's JSON format. */
  data: string;
  /** Folder that the records' pictures are in. */
  images?: string | undefined;
  /** Folder that the records' videos and feature files are in. */
  videos?: string | undefined;
}

export interface TrainOptions extends TrainingInputs {
  /** A recipe, the name of one in this package, or a file. */
  recipe: Recipe | string;
  /** Fields of the recipe to replace. */
  changes?: RecipeChanges | undefined;
  /** Folder for what the stage writes, for checkpoints, metrics and charts. */
  output: string;
  /** Goes on with the run in `output` from its last checkpoint; a new run where there is none. */
  resume?: boolean | undefined;
  /** `auto`, `cpu`, `cuda` or `cuda:N`. Default `auto`. */
  device?: string | undefined;
  /** Share of the records that may fail, once ten have, before the run stops. Default 0.1. */
  failureLimit?: number | undefined;
  /** Finishes the step that runs, saves a checkpoint and rejects with `ABORTED`. */
  signal?: AbortSignal | undefined;
}

/** What `planTraining` needs. Where `output` holds a run already, its speed gives the time. */
export type PlanOptions = Omit<TrainOptions, 'output' | 'resume' | 'failureLimit'> & {
  output?: string | undefined;
};

/** @internal Options with the recipe read and the paths checked. */
export interface ResolvedOptions {
  recipe: Recipe;
  inputs: TrainingInputs;
}

/** @internal Reads the recipe and checks what can be checked before anything is loaded. */
export function resolveOptions(options: PlanOptions): ResolvedOptions {
  const base = typeof options.recipe === 'string' ? loadRecipe(options.recipe) : checkRecipe(options.recipe);
  const recipe = options.changes === undefined ? base : changeRecipe(base, options.changes);
  const { model, languageModel, visionTower, queryModel, adapter, processor, queryTokenizer } = options;
  const inputs: TrainingInputs = {
    model: checked('model', model),
    languageModel: checked('languageModel', languageModel),
    visionTower: checked('visionTower', visionTower),
    queryModel: checked('queryModel', queryModel),
    adapter: checked('adapter', adapter),
    processor: checked('processor', processor),
    queryTokenizer: checked('queryTokenizer', queryTokenizer),
    data: required('data', options.data),
    images: mediaFolder('images', options.images),
    videos: mediaFolder('videos', options.videos),
  };
  checkStart(recipe, inputs);
  return { recipe, inputs };
}

/** Which files a stage starts from. */
function checkStart({ stage, name }: Recipe, inputs: TrainingInputs): void {
  const { model, languageModel, queryModel, adapter } = inputs;
  if (model === undefined && languageModel === undefined) {
    throw wrong(
      `${name} needs a model to start from`,
      stage === 3
        ? 'Give the folder that stage 2 wrote: --model <folder>.'
        : 'Give the base language model: --llm <folder>.',
    );
  }
  if (model !== undefined && languageModel !== undefined) {
    throw wrong(
      'a run starts from a LLaMA-VID folder or from a base language model, not from both',
      'Give one of them.',
    );
  }
  if (model !== undefined) return;
  if (stage === 1 && queryModel === undefined) {
    throw wrong(
      `${name} needs the Q-Former's file`,
      'Give it: --query-model instruct_blip_vicuna7b_trimmed.pth.',
    );
  }
  if (stage === 2 && adapter === undefined) {
    throw wrong(
      `${name} needs what stage 1 wrote`,
      'Give it: --adapter <folder of stage 1>/mm_projector.bin.',
    );
  }
  if (stage === 3) {
    throw wrong(
      `${name} goes on from a LLaMA-VID folder`,
      'Give the folder that stage 2 wrote: --model <folder>.',
    );
  }
}

function required(name: string, path: string | undefined): string {
  if (typeof path !== 'string' || path === '') throw wrong(`${name} is missing`, 'Give the list of records.');
  if (!existsSync(path)) {
    throw new LlamaVidError('DATA_INVALID', `${path}: there is no such file`, {
      hint: 'Give a list of records in LLaVA’s JSON format.',
    });
  }
  return resolve(path);
}

function checked(name: string, path: string | undefined): string | undefined {
  if (path === undefined) return undefined;
  if (!existsSync(path)) {
    throw new LlamaVidError('MODEL_NOT_FOUND', `${path}: there is no such file or folder (${name})`, {
      hint: 'Check the path.',
    });
  }
  return resolve(path);
}

function mediaFolder(name: string, path: string | undefined): string | undefined {
  if (path === undefined) return undefined;
  if (!existsSync(path) || !statSync(path).isDirectory()) {
    throw new LlamaVidError('MEDIA_NOT_FOUND', `${path}: there is no such folder (${name})`, {
      hint: 'Records name their files relative to this folder.',
    });
  }
  return resolve(path);
}

function wrong(message: string, hint: string): LlamaVidError {
  return new LlamaVidError('INVALID_ARGUMENT', message, { hint });
}
