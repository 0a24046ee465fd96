import { expect, it } from 'vitest';
import { Turns } from '../src/turns.js';

it('lets so many work at once, in their order, and forgets who gives up', async () => {
  const turns = new Turns();
  const begun: number[] = [];
  const work = (name: number, signal?: AbortSignal) => turns.take(2, signal).then(() => begun.push(name));
  const controller = new AbortController();
  const waiting = [work(0), work(1), work(2, controller.signal), work(3), work(4)];
  const settled = () => new Promise(setImmediate);
  await settled();
  expect(begun).toEqual([0, 1]);
  controller.abort();
  await expect(waiting[2]).rejects.toMatchObject({ code: 'ABORTED' });
  turns.give();
  await settled();
  expect(begun).toEqual([0, 1, 3]);
  turns.give();
  turns.give();
  await settled();
  expect(begun).toEqual([0, 1, 3, 4]);
});
