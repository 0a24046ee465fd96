import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { RecipeChanges, TrainOptions } from '../dist/index.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
/** A recorded case with everything that the three stages start from, at toy sizes. */
export const oracle = join(fixtures, 'oracle/long-video');

interface Turn {
  from: 'human' | 'gpt';
  value: string;
}

export interface DataRecord {
  id: string;
  image?: string;
  video?: string;
  conversations: Turn[];
}

/** What the recipes do not say: the sizes of the recorded model, and steps that take milliseconds. */
export const toySizes: RecipeChanges = {
  model: {
    imageSize: null,
    queryCount: 6,
    compression: 'mean',
    projector: 'mlp2x_gelu',
    sizes: { vision: { width: 32, depth: 2, heads: 2, mlpWidth: 139 } },
  },
  compute: { dtype: 'f32', activationCheckpointing: false, queryDropout: 0.1 },
};

export interface SmallSet {
  folder: string;
  images: string;
  videos: string;
  /** Lists of the three stages, in the reference's format. */
  lists: [string, string, string];
}

/** A small set of pictures, one short video and one long one, in the reference's format. */
export function smallSet(folder: string, records = 12): SmallSet {
  const [images, videos] = [join(folder, 'images'), join(folder, 'videos')];
  mkdirSync(videos, { recursive: true });
  cpSync(join(oracle, 'data/images'), images, { recursive: true });
  cpSync(join(fixtures, 'clips/bbb_vp9.webm'), join(videos, 'clip.webm'));
  for (const name of ['movie_train.pkl', 'movie_train.json'])
    cpSync(join(oracle, 'data/feats', name), join(videos, name));
  const ask = (question: string, answer: string): Turn[] => [
    { from: 'human', value: question },
    { from: 'gpt', value: answer },
  ];
  const media = (index: number) =>
    index % 6 === 5 ? { video: 'clip.webm' } : { image: `im${index % 4}.png` };
  const words = ['a cat', 'two boats', 'the market', 'a red car', 'snow', 'an empty road', 'rain'];
  const stage1 = Array.from({ length: records }, (_, index) => ({
    id: `a${index}`,
    ...media(index),
    conversations: ask('Describe it.\n<image>', `It shows ${words[index % words.length]}, number ${index}.`),
  }));
  const stage2 = Array.from({ length: records }, (_, index) => ({
    id: `b${index}`,
    ...(index % 5 === 4 ? {} : media(index)),
    conversations: [
      ...ask(
        index % 5 === 4 ? 'Who talks?' : '<image>\nWhat is it?',
        `It is ${words[index % words.length]}.`,
      ),
      ...(index % 2 === 0 ? ask('And then?', `Nothing else, ${index} times.`) : []),
    ],
  }));
  const stage3 = Array.from({ length: 3 }, (_, index) => ({
    id: `c${index}`,
    video: 'movie_train.pkl',
    conversations: ask('<image>\nWho is in it?', `${words[index]} and ${words[index + 1]}.`),
  }));
  const lists = [stage1, stage2, stage3].map((list, index) => {
    const path = join(folder, `stage${index + 1}.json`);
    writeFileSync(path, JSON.stringify(list, undefined, 1));
    return path;
  });
  return { folder, images, videos, lists: lists as [string, string, string] };
}

/** Stage 1 of the small set: 12 records, two a step. */
export function stage1(set: SmallSet, output: string, changes: RecipeChanges = {}): TrainOptions {
  return {
    recipe: 'video-7b-stage1',
    changes: {
      ...toySizes,
      batch: { perDevice: 2, accumulation: 1, devices: 1 },
      checkpoints: { everySteps: 2, keep: 2 },
      ...changes,
    },
    languageModel: join(oracle, 'llm'),
    visionTower: join(oracle, 'eva_vit_g.pth'),
    queryModel: join(oracle, 'instruct_blip_vicuna7b_trimmed.pth'),
    data: set.lists[0],
    images: set.images,
    videos: set.videos,
    output,
    device: 'cpu',
  };
}
