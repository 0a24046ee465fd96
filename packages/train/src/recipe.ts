import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LlamaVidError } from '@llamavid/errors';
import { type Schema, violations } from './json-schema.js';

/** How one stage is trained; `recipe.schema.json` says what each field means and may be. */
export interface Recipe {
  name: string;
  /** What it trains, in one line. */
  title: string;
  /** Where its numbers come from. */
  source: string;
  stage: 1 | 2 | 3;
  /** The published files that the numbers belong to. */
  expects?: {
    languageModel?: string;
    visionTower?: string;
    queryModel?: string;
    start?: string;
    data?: string;
  };
  model: {
    imageSize?: number | null;
    /** The block `llamavid` of `config.json`, for models that are not of the published sizes. */
    sizes?: { vision?: Record<string, number>; query?: Record<string, number> };
    /** Null takes the base model's, here and in the next two. */
    projector: string | null;
    compression: string | null;
    queryCount: number | null;
    bertType: string;
    imageStartEnd: boolean;
    imagePatchToken: boolean;
  };
  data: {
    template: 'plain_guided' | 'imgsp_v1';
    maxLength: number;
    imageAspectRatio: 'square' | 'pad';
    videoFps: number;
    videoToken: number;
    groupByModalityLength: boolean;
  };
  optimizer: {
    kind: 'adamw' | 'muon';
    learningRate: number;
    muonLearningRate?: number;
    learningRateMultipliers?: Record<string, number>;
    betas: [number, number];
    epsilon: number;
    weightDecay: number;
    schedule: 'cosine' | 'constant';
    warmupRatio: number;
    gradientClip: number | null;
  };
  /** A step's samples are the product, on however few devices they are computed. */
  batch: { perDevice: number; accumulation: number; devices: number };
  epochs: number;
  maxSteps?: number | null;
  compute: { dtype: 'f32' | 'bf16'; activationCheckpointing: boolean; queryDropout: number };
  lora?: Lora | null;
  checkpoints: { everySteps: number; keep: number };
  seed: number;
}

/** Low-rank additions to the language model, trained in place of its weights. */
export interface Lora {
  rank: number;
  alpha: number;
  dropout: number;
  /** Names of the projections that get one. */
  targets: string[];
  /** Whether they are added to the language model that is written, or written by themselves in PEFT's format. */
  merge: boolean;
}

/** A recipe's fields to replace, nested as they are. */
export type RecipeChanges = { [Key in keyof Recipe]?: Change<Recipe[Key]> };
type Change<Value> = Value extends unknown[]
  ? Value
  : Value extends object
    ? { [Key in keyof Value]?: Change<Value[Key]> }
    : Value;

const folder = new URL('../recipes/', import.meta.url);
const schema: Schema = JSON.parse(readFileSync(new URL('../recipe.schema.json', import.meta.url), 'utf8'));
/** A recipe has about 2 kB; a larger file is something else. */
const LARGEST_FILE = 1 << 20;

/** The names of the recipes in this package. */
export function recipeNames(): string[] {
  return readdirSync(folder)
    .filter((file) => file.endsWith('.json'))
    .map((file) => basename(file, '.json'))
    .sort();
}

/** Reads a recipe of this package by its name, or a file. */
export function loadRecipe(nameOrFile: string): Recipe {
  const path = recipeNames().includes(nameOrFile)
    ? fileURLToPath(new URL(`${nameOrFile}.json`, folder))
    : nameOrFile;
  if (!existsSync(path)) {
    throw new LlamaVidError('INVALID_ARGUMENT', `${nameOrFile}: neither a recipe's name nor a file`, {
      hint: `Recipes: ${recipeNames().join(', ')}.`,
    });
  }
  return checkRecipe(readJson(path), path);
}

/** Checks what may be a recipe. `origin` is what the error calls it. */
export function checkRecipe(value: unknown, origin = 'the recipe'): Recipe {
  const [first, ...others] = violations(value, schema);
  if (first !== undefined) {
    const more = others.length === 0 ? '' : ` (and ${others.length} more: ${others.slice(0, 3).join('; ')})`;
    throw new LlamaVidError('INVALID_ARGUMENT', `${origin}: ${first}${more}`, {
      hint: 'recipe.schema.json of @llamavid/train says what a recipe holds.',
    });
  }
  return value as Recipe;
}

/** The recipe with some fields replaced, checked again. Lists and `null` replace as a whole. */
export function changeRecipe(recipe: Recipe, changes: RecipeChanges): Recipe {
  return checkRecipe(merge(recipe, changes), recipe.name);
}

function merge(value: unknown, changes: unknown): unknown {
  if (!isObject(value) || !isObject(changes)) return changes;
  const merged: Record<string, unknown> = { ...value };
  for (const [key, change] of Object.entries(changes)) {
    if (change !== undefined) merged[key] = merge(merged[key], change);
  }
  return merged;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function readJson(path: string): unknown {
  try {
    if (statSync(path).size > LARGEST_FILE) throw new Error('it is too large for a recipe');
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new LlamaVidError('INVALID_ARGUMENT', `${path} is no recipe: ${(error as Error).message}`, {
      hint: 'A recipe is a JSON file; recipe.schema.json of @llamavid/train describes it.',
      cause: error,
    });
  }
}
