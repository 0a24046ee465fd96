import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { conversation, LanguageModel, movieQuestion } from '@llamavid/llm';
import { TokenGenerator } from '@llamavid/tokens';
import { openMedia } from '@llamavid/video';
import { VisualEncoder, VisualFeatures } from '@llamavid/vision';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { LlamaVid, previewPrompt, type SubtitleSource } from '../src/index.js';
import { fixtures } from './oracle-model.js';
import { roomyModel } from './roomy-model.js';

const clipFile = join(fixtures, 'clips/bbb_vp9.webm');
const long = join(fixtures, 'world/media/long-000.mp4');
const said = join(fixtures, 'world/media/long-000.srt');
const exact = { device: 'cpu', dtype: 'f32' } as const;

const folder = mkdtempSync(join(tmpdir(), 'llamavid-subtitles-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

describe('subtitles', () => {
  const roomy = roomyModel();
  let model: LlamaVid;
  beforeAll(async () => {
    model = await LlamaVid.load(roomy.folder, exact);
  });
  afterAll(async () => {
    await model.close();
    roomy[Symbol.dispose]();
  });

  it('stand between the frames, as the stages by themselves put them', async () => {
    const question = 'What is said?';
    const subtitles = [
      { start: 0.2, end: 1.5, text: 'A rabbit.' },
      { start: 2, end: 3.5, text: 'It is big.' },
    ];
    await using clip = await model.open(clipFile, { frames: 5 });
    const answer = await model.ask(clip, question, { subtitles, maxNewTokens: 16 }).result();
    expect(answer.subtitles).toEqual([{ count: 2, notes: [] }]);

    await using media = await openMedia(clipFile, { frames: 5 });
    using encoder = await VisualEncoder.load(roomy.folder, exact);
    using generator = await TokenGenerator.load(roomy.folder, exact);
    using languageModel = await LanguageModel.load(roomy.folder, exact);
    using session = languageModel.createSession();
    const parts: VisualFeatures[] = [];
    for await (const { pixels } of media.pixels(encoder.preprocessing)) {
      parts.push(await encoder.encode(pixels));
      pixels.close();
    }
    using features = await VisualFeatures.concatenate(parts);
    using tokens = await generator.generate(features, question);
    const { imagePlaceholder } = languageModel;
    const { tokensPerFrame } = tokens;
    const frameTimes = media.report().timestamps;
    const asked = movieQuestion({ subtitles, frameTimes, tokensPerFrame, imagePlaceholder }, question);
    expect(asked).toMatch(
      /^Below is a movie\. .*movie\.(<image>)+A rabbit\.(<image>)+It is big\.(<image>)+Now the movie end\.\nWhat is said\?$/,
    );
    const staged = await session
      .generate(conversation('vicuna_v1').render([{ question: asked }]), {
        visualTokens: [tokens],
        layout: 'per-token',
        maxNewTokens: 16,
        stop: '</s>',
      })
      .result();
    expect(answer.tokenIds).toEqual(staged.tokenIds);
    expect(answer.usage).toEqual(staged.usage);
  });

  it('come from a file, its bytes or the caller, with the question or with the video', async () => {
    const path = file('said.srt', '1\n00:00:01,000 --> 00:00:02,500\nHello there.\n');
    const web = file('said.vtt', 'WEBVTT\n\n00:01.000 --> 00:02.500\nHello there.\n');
    const list = [{ start: 1, end: 2.5, text: 'Hello there.' }];
    await using clip = await model.open(clipFile, { frames: 4 });
    const ids: number[][] = [];
    for (const subtitles of [path, web, readFileSync(path), list]) {
      const { tokenIds, subtitles: seen } = await model
        .ask(clip, 'What?', { subtitles, maxNewTokens: 8 })
        .result();
      expect(seen).toEqual([
        { ...(typeof subtitles === 'string' && { path: subtitles }), count: 1, notes: [] },
      ]);
      ids.push(tokenIds);
    }
    await using opened = await model.open(clipFile, { frames: 4, subtitles: path });
    ids.push((await model.ask(opened, 'What?', { maxNewTokens: 8 }).result()).tokenIds);
    ids.push((await model.chat(opened, { maxNewTokens: 8 }).send('What?').result()).tokenIds);
    expect(new Set(ids.map((each) => each.join()))).toHaveLength(1);

    const silent = await model.ask(opened, 'What?', { subtitles: 'none', maxNewTokens: 8 }).result();
    expect(silent.subtitles).toEqual([]);
    expect(silent.tokenIds).toEqual((await model.ask(clip, 'What?', { maxNewTokens: 8 }).result()).tokenIds);
  });

  it('belong to their own video among several', async () => {
    await using first = await model.open(clipFile, {
      frames: 2,
      subtitles: [{ start: 0, end: 9, text: 'One.' }],
    });
    await using second = await model.open(clipFile, { frames: 3 });
    const both = await model.ask([first, second], 'What?', { maxNewTokens: 4 }).result();
    expect([both.usage.visualTokens, both.subtitles.length]).toEqual([10, 1]);
    const { prompt } = await previewPrompt([clipFile], 'What?', {
      model: roomy.folder,
      frames: 2,
      subtitles: [{ start: 0, end: 9, text: 'One.' }],
    });
    expect(prompt).toContain('<image><image><image><image>One.Now the movie end.\nWhat? ASSISTANT:');
    const answer = model.ask([first, second], 'What?', { subtitles: said });
    await expect(answer.result()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('of a part of a video are those that are said in it', async () => {
    // The first frame comes behind the start, and behind the end of what is said at 0.9.
    const early = { start: 0.9, end: 1.01, text: 'at 9' };
    const late = await previewPrompt([clipFile], 'What?', {
      model: roomy.folder,
      start: 1.005,
      subtitles: [early, { start: 2, end: 2.5, text: 'at 2' }],
    });
    expect(late.frameTimes[0]?.[0]).toBeGreaterThan(early.end);
    expect(late.prompt.match(/at \d/g)).toEqual(['at 2']);
    const subtitles = [0, 1, 2, 3, 4].map((start) => ({ start, end: start + 0.5, text: `at ${start}` }));
    const part = await previewPrompt([clipFile], 'What?', {
      model: roomy.folder,
      start: 1,
      end: 4,
      subtitles,
    });
    expect(part.prompt.match(/at \d/g)).toEqual(['at 1', 'at 2', 'at 3']);
    expect(part.subtitles).toEqual([{ count: 3, notes: [expect.stringMatching(/^2 of the subtitles/)] }]);
  });

  it('of a long video fit beside its frames', async () => {
    const question = 'what prize does the speaker name?';
    const preview = await previewPrompt([long], question, { model: roomy.folder, subtitles: said });
    const { prompt, frameTimes, usage } = { ...preview, usage: preview.promptTokens };
    expect(frameTimes[0]).toEqual(Array.from({ length: 275 }, (_, second) => second));
    // Said from 38.5 s to 39.7 s: behind the frame of second 39.
    const before = prompt.slice(0, prompt.indexOf('i say the prize is cake .'));
    expect(before.split('<image>').length - 1).toBe(40 * 2);
    await using clip = await model.open(long, { subtitles: said });
    const answer = await model.ask(clip, question, { maxNewTokens: 4 }).result();
    expect(answer.usage).toMatchObject({ promptTokens: usage, visualTokens: 550 });
  });

  const huge = join(folder, 'huge.srt');
  const noise = new Uint8Array(200_000).map((_, index) => (index * 2654435761) >>> 24);
  for (const [what, path, code] of [
    ['a missing file', join(folder, 'nowhere.srt'), 'MEDIA_NOT_FOUND'],
    ['a folder', folder, 'DATA_INVALID'],
    ['an empty file', file('empty.srt', ''), 'DATA_INVALID'],
    ['a video', clipFile, 'DATA_INVALID'],
    ['noise', file('noise.srt', noise), 'DATA_INVALID'],
    ['zeros', file('zeros.srt', new Uint8Array(1000)), 'DATA_INVALID'],
    ['broken times', file('times.srt', '1\n00:00:aa,000 --> 00:00:02,000\nHi\n'), 'DATA_INVALID'],
    ['negative times', file('negative.srt', '1\n-00:00:01,000 --> 00:00:02,000\nHi\n'), 'DATA_INVALID'],
    ['a file of 1 TB', huge, 'MEDIA_TOO_LARGE'],
    ['.ass without dialogue', file('said.ass', '[Script Info]\nTitle: x\n'), 'DATA_INVALID'],
    ['.ass with broken times', file('times.ass', '[Events]\nDialogue: 0,x,y,,,0,0,0,,Hi\n'), 'DATA_INVALID'],
    [
      '.vtt with negative times',
      file('minus.vtt', 'WEBVTT\n\n-00:01.000 --> 00:02.000\nHi\n'),
      'DATA_INVALID',
    ],
    ['a time that is no number', [{ start: 0, end: Number.NaN, text: 'Hi' }], 'INVALID_ARGUMENT'],
  ] as const) {
    it(`are refused: ${what}`, async () => {
      if (path === huge) {
        writeFileSync(huge, '');
        truncateSync(huge, 2 ** 40);
      }
      await expect(model.open(clipFile, { subtitles: path })).rejects.toMatchObject({ code });
      await using clip = await model.open(clipFile, { frames: 2 });
      const answer = model.ask(clip, 'What?', { subtitles: path });
      await expect(answer.result()).rejects.toMatchObject({ code });
    });
  }

  it('are refused for a picture', async () => {
    const picture = join(fixtures, 'world/media/image-000.png');
    const refused = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
    await expect(model.open(picture, { subtitles: said })).rejects.toEqual(refused);
    await using opened = await model.open(picture, { subtitles: 'auto' });
    expect((await model.ask(opened, 'What?', { maxNewTokens: 2 }).result()).subtitles).toEqual([]);
  });

  it('of every kind of file stand where the same words of a .srt file do', async () => {
    const kinds = {
      srt: '1\n00:00:01,000 --> 00:00:02,500\nHello there.\n\n2\n00:00:03,000 --> 00:00:03,500\nBye.\n',
      vtt: 'WEBVTT\n\n00:01.000 --> 00:02.500\n<b>Hello</b>\nthere.\n\n00:03.000 --> 00:03.500\nBye.\n',
      ass: `[Script Info]\n\n[Events]\nDialogue: 0,0:00:03.00,0:00:03.50,Default,,0,0,0,,{\\i1}Bye.
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,Hello\\Nthere.\n`,
      ssa: `[Script Info]\n\n[Events]\nDialogue: Marked=0,0:00:01.00,0:00:02.50,Default,,0,0,0,,Hello there.
Dialogue: Marked=0,0:00:03.00,0:00:03.50,Default,,0,0,0,,Bye.\n`,
    };
    const prompts = new Set<string>();
    for (const [ending, text] of Object.entries(kinds)) {
      const subtitles = file(`kinds.${ending}`, text);
      const preview = await previewPrompt([clipFile], 'What?', { model: roomy.folder, subtitles });
      expect(preview.subtitles, ending).toEqual([{ path: subtitles, count: 2, notes: [] }]);
      prompts.add(preview.prompt);
    }
    expect([...prompts]).toEqual([
      expect.stringContaining('<image>Hello there.<image><image>Bye.<image><image>'),
    ]);
  });

  describe('auto', () => {
    const beside = join(folder, 'beside');
    mkdirSync(beside);
    const cue = (text: string) => `1\n00:00:01,000 --> 00:00:02,500\n${text}\n`;
    const seen = async (video: string, subtitles: SubtitleSource = 'auto') => {
      const preview = await previewPrompt([video], 'What?', { model: roomy.folder, subtitles });
      return { prompt: preview.prompt, report: preview.subtitles[0] };
    };
    const embedded = join(fixtures, 'clips/subs_audio.mkv');

    it('takes the file beside the video, English before other languages', async () => {
      const video = join(beside, 'film.part.webm');
      cpSync(clipFile, video);
      expect((await seen(video)).report).toBeUndefined();
      // Of another video, and of no language.
      for (const name of ['film.srt', 'film.part.2.srt', 'film.party.srt'])
        file(join('beside', name), cue('no'));
      expect((await seen(video)).report).toBeUndefined();
      for (const [name, text] of [
        ['film.part.en.forced.srt', 'a sign'],
        ['film.part.de.srt', 'Hallo'],
        ['film.part.en-US.srt', 'hello'],
        ['film.part.SRT', 'hi'],
      ] as const) {
        const path = file(join('beside', name), cue(text));
        const { prompt, report } = await seen(video);
        expect(report).toMatchObject({ path, count: 1 });
        expect(prompt).toContain(`<image>${text}<image>`);
      }
      expect((await seen(video)).report?.notes).toEqual([
        expect.stringContaining('film.part.en-US.srt is beside'),
        expect.stringContaining('film.part.de.srt is beside'),
        expect.stringContaining('film.part.en.forced.srt is beside'),
      ]);
      file('beside/film.part.SRT', 'nothing');
      await expect(seen(video)).rejects.toMatchObject({
        code: 'DATA_INVALID',
        message: expect.stringContaining('film.part.SRT'),
      });
    });

    it('takes the text stream of a file, also of bytes and while frames are encoded', async () => {
      const stream = { index: 2, format: 'subrip' };
      const { prompt, report } = await seen(embedded);
      expect(report).toEqual({ stream, count: 2, notes: [] });
      expect(prompt).toContain('<image>Hello world<image>');
      expect(prompt).toContain('<image>Second line with break<image>');
      await using clip = await model.open(readFileSync(embedded));
      const [silent, heard] = await Promise.all([
        model.ask(clip, 'What?', { maxNewTokens: 2 }).result(),
        model.ask(clip, 'What?', { subtitles: 'auto', maxNewTokens: 2 }).result(),
      ]);
      expect([silent.subtitles, heard.subtitles]).toEqual([[], [{ stream, count: 2, notes: [] }]]);
      expect(heard.usage.promptTokens).toBeGreaterThan(silent.usage.promptTokens);
    });

    it('takes what each of several videos has', async () => {
      await using first = await model.open(embedded, { frames: 2 });
      await using second = await model.open(clipFile, { frames: 2 });
      const answer = model.ask([first, second], 'What?', { subtitles: 'auto', maxNewTokens: 2 });
      expect((await answer.result()).subtitles).toHaveLength(1);
    });
  });

  it('that are odd are repaired and counted', async () => {
    const latin = Buffer.from('1\r\n00:00:01,000 --> 00:00:00,500\r\nol\xe9 <image> there\r\n', 'latin1');
    await using clip = await model.open(clipFile, { frames: 3, subtitles: latin });
    const { subtitles } = await model.ask(clip, 'What?', { maxNewTokens: 4 }).result();
    expect(subtitles).toEqual([
      {
        count: 1,
        notes: [
          expect.stringMatching(/^1 bytes .* not UTF-8/),
          expect.stringContaining('<image>'),
          expect.stringMatching(/end before they begin/),
        ],
      },
    ]);
  });

  it('may be 100,000', async () => {
    const cues = Array.from({ length: 100_000 }, (_, index) => {
      const seconds = (index % 60).toString().padStart(2, '0');
      return `${index}\n00:00:${seconds},000 --> 00:00:${seconds},500\nword\n`;
    });
    const preview = await previewPrompt([clipFile], 'What?', {
      model: roomy.folder,
      subtitles: file('many.srt', cues.join('\n')),
    });
    expect(preview.subtitles[0]?.count).toBe(100_000);
    expect(preview.promptTokens).toBeGreaterThan(preview.contextLength);
    await using clip = await model.open(clipFile, { subtitles: join(folder, 'many.srt') });
    await expect(model.ask(clip, 'What?').result()).rejects.toMatchObject({ code: 'CONTEXT_OVERFLOW' });
  });
});

describe('previewPrompt', () => {
  it('shows what a question without subtitles would be', async () => {
    const model = join(fixtures, 'random-model');
    const preview = await previewPrompt([clipFile], 'What happens?', { model, frames: 3 });
    expect(preview.prompt).toMatch(/USER: (<image>){6}\nWhat happens\? ASSISTANT:$/);
    expect(preview).toMatchObject({ conversation: 'llava_v1', tokensPerFrame: 2, visualTokens: 6 });
    await using loaded = await LlamaVid.load(model, exact);
    await using clip = await loaded.open(clipFile, { frames: 3 });
    const { usage } = await loaded.ask(clip, 'What happens?', { maxNewTokens: 4 }).result();
    expect(usage.promptTokens).toBe(preview.promptTokens);
  });

  it('takes the template that the model names', async () => {
    using named = roomyModel({ conversation: 'vicuna_v1' });
    const { conversation: template } = await previewPrompt([], 'Hi', { model: named.folder });
    expect(template).toBe('vicuna_v1');
    await using loaded = await LlamaVid.load(named.folder, exact);
    const ask = async (conversation?: string) =>
      (await loaded.ask(undefined, 'Hi', { conversation, maxNewTokens: 8 }).result()).usage.promptTokens;
    expect(await ask()).toBe(await ask('vicuna_v1'));
    using wrong = roomyModel({ conversation: 'nobody' });
    await expect(LlamaVid.load(wrong.folder)).rejects.toMatchObject({ code: 'MODEL_INVALID' });
  });
});
