import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { conversation, LanguageModel, movieQuestion, parseSubtitles, type Subtitle } from '@llamavid/llm';
import { TokenGenerator } from '@llamavid/tokens';
import { VisualFeatures } from '@llamavid/vision';
import { expect, it } from 'vitest';
import { fixtures, OracleModel } from './oracle-model.js';
import { readTensor } from './safetensors.js';

const exact = { device: 'cpu', dtype: 'f32' } as const;
const readJson = (path: string) => JSON.parse(readFileSync(join(fixtures, 'oracle', path), 'utf8'));

/** What the reference calls a movie's inputs, cut out of its question. */
function inputsOf(subtitles: readonly Subtitle[], frameTimes: readonly number[]): string {
  const movie = { subtitles, frameTimes, tokensPerFrame: 1, imagePlaceholder: '<image>' };
  const asked = movieQuestion(movie, 'Why?');
  return asked.slice(
    asked.indexOf('this movie.') + 'this movie.'.length,
    asked.indexOf('Now the movie end.'),
  );
}

it('reads and places the subtitles of every recorded file', async () => {
  const { srt } = readJson('text/subtitles.json');
  for (const { file, subtitles: expected, frame_time, inputs } of srt) {
    const read = await parseSubtitles(readFileSync(join(fixtures, 'oracle/text', file)), file);
    const shown = read.subtitles.map(({ start, end, text }) => ({ text, start_time: start, end_time: end }));
    expect(shown).toEqual(expected);
    expect(inputsOf(read.subtitles, frame_time)).toBe(inputs);
  }
});

it('answers about movies as the reference does, token for token', async () => {
  using oracle = new OracleModel('long-video', { features: 'precomputed' });
  using generator = await TokenGenerator.load(oracle.folder, exact);
  using model = await LanguageModel.load(oracle.folder, exact);
  for (const id of ['movie_short', 'movie']) {
    const { prompt, qformer_prompts, greedy_ids, spliced_length } = oracle.find(id);
    const { values, shape } = readTensor(
      join(fixtures, 'oracle/long-video/tensors.safetensors'),
      `feats/${id}`,
    );
    // The first row of each frame is that of the class.
    const [frames = 0, rows = 0, width = 0] = shape;
    const patches = values.filter((_, index) => Math.floor(index / width) % rows > 0);
    using features = await VisualFeatures.fromFloat32Array(patches, [frames, rows - 1, width], {
      kind: 'precomputed',
      device: 'cpu',
    });
    const question = qformer_prompts?.[0]?.[0] ?? '';
    using tokens = await generator.generate(features, question);

    // Subtitles that end between two frames stand where the recorded inputs have them.
    const { inputs } = readJson(`long-video/data/feats/${id}.json`);
    const subtitles = inputs
      .split('<image>')
      .slice(1)
      .map((text: string, second: number) => ({ start: second, end: second + 0.5, text }))
      .filter(({ text }: Subtitle) => text !== '');
    const asked = movieQuestion(
      {
        subtitles,
        frameTimes: Array.from({ length: frames }, (_, second) => second),
        tokensPerFrame: tokens.tokensPerFrame,
        imagePlaceholder: model.imagePlaceholder,
      },
      question,
    );
    const template = conversation('vicuna_v1');
    const rendered = template.render([{ question: asked }]);
    expect(rendered).toBe(prompt);
    using session = model.createSession();
    const { tokenIds, usage } = await session
      .generate(rendered, {
        visualTokens: [tokens],
        layout: 'per-token',
        maxNewTokens: 24,
        stop: template.stop,
      })
      .result();
    expect(tokenIds).toEqual(greedy_ids);
    expect(usage.promptTokens).toBe(spliced_length);
  }
});
