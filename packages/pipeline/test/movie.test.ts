import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { conversation, LanguageModel, movieQuestion, parseSubtitles, type Subtitle } from '@llamavid/llm';
import { TokenGenerator } from '@llamavid/tokens';
import { VisualFeatures } from '@llamavid/vision';
import { expect, it } from 'vitest';
import { LlamaVid, previewPrompt } from '../src/index.js';
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

it('asks feature files as `run_llamavid_movie` does, token for token', async () => {
  const feats = (file: string) => join(fixtures, 'oracle/long-video/data/feats', file);
  // The reference cuts class rows off, whatever the model is said to expect.
  for (const more of [{}, { features: 'precomputed' }]) {
    using oracle = new OracleModel('long-video', more);
    await using model = await LlamaVid.load(oracle.folder, exact);
    for (const id of ['movie_short', 'movie']) {
      const { prompt, qformer_prompts, greedy_ids, spliced_length, conversation } = oracle.find(id);
      const question = qformer_prompts?.[0]?.[0] ?? '';
      const { values, shape } = readTensor(
        join(fixtures, 'oracle/long-video/tensors.safetensors'),
        `feats/${id}`,
      );
      const { inputs } = readJson(`long-video/data/feats/${id}.json`);
      const copy = join(oracle.folder, `${id}.safetensors`);
      writeFileSync(copy, featureFile(values, shape, inputs));
      for (const path of [feats(`${id}.pkl`), copy]) {
        const preview = await previewPrompt([path], question, { model: oracle.folder });
        expect(preview).toMatchObject({ prompt, conversation, promptTokens: spliced_length });
        await using movie = await model.open(path);
        const answer = await model.ask(movie, question, { maxNewTokens: 24 }).result();
        expect(answer.tokenIds).toEqual(greedy_ids);
        expect(answer.usage.promptTokens).toBe(spliced_length);
        expect(answer.work).toEqual({ framesDecoded: 0, framesEncoded: 0, storeHit: true });
        expect(answer.sampling).toMatchObject({ frames: shape[0], source: { path, codec: 'features' } });
        const texts = inputs.split('<image>').filter((text: string) => text !== '');
        expect(answer.subtitles).toEqual([{ path, count: texts.length, notes: [] }]);
        // A chat shows the movie in front of the newest question, and timelines count its frames.
        using chat = model.chat(movie, { maxNewTokens: 2 });
        await chat.send(question).result();
        expect((await chat.send('And then?').result()).usage.visualTokens).toBe(answer.usage.visualTokens);
        expect((await model.timeline(movie, question)).frames).toHaveLength(shape[0] ?? 0);
      }
    }
  }
});

it('refuses what cannot be chosen any more, and movies that are too long', async () => {
  using oracle = new OracleModel('long-video');
  await using model = await LlamaVid.load(oracle.folder, exact);
  const path = join(fixtures, 'oracle/long-video/data/feats/movie.pkl');
  for (const options of [{ fps: 2 }, { frames: 3 }, { start: 0 }, { end: 2 }, { maxVisualTokens: 8 }]) {
    await expect(model.open(path, options)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(Object.keys(options)[0] ?? ''),
    });
  }
  await expect(model.open(path, { subtitles: 'film.srt' })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
  });
  await using movie = await model.open(path);
  await expect(model.ask(movie, 'Why?', { subtitles: [] }).result()).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
  });
  const frames = 1500;
  const long = join(oracle.folder, 'long.safetensors');
  writeFileSync(
    long,
    featureFile(new Float32Array(frames * 17 * 32), [frames, 17, 32], '<image>'.repeat(frames)),
  );
  await using longer = await model.open(long);
  await expect(model.ask(longer, 'Why?').result()).rejects.toMatchObject({
    code: 'CONTEXT_OVERFLOW',
    hint: expect.stringMatching(/^\d+ frames fit: make the features of fewer/),
  });
});

/** A safetensors file of the content of the reference's pickles. */
function featureFile(values: Float32Array, shape: readonly number[], inputs: string): Buffer {
  const feats = { dtype: 'F32', shape, data_offsets: [0, values.byteLength] };
  const header = Buffer.from(JSON.stringify({ __metadata__: { inputs }, feats }));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, Buffer.from(values.buffer, values.byteOffset, values.byteLength)]);
}
