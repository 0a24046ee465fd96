/**
 * The memory that the decoding worker and its owner share.
 *
 * The worker decodes synchronously and reads no messages meanwhile, so what must reach it does so here:
 * how many frames it may deliver, and whether to stop.
 */

const CREDITS = 0;
const CANCELLED = 1;
const BEAT = 2;
const WAITING = 3;

/** Both sides hold one over the same buffer. */
export class Control {
  readonly buffer: SharedArrayBuffer;
  readonly #cells: Int32Array<SharedArrayBuffer>;

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(16)) {
    this.buffer = buffer;
    this.#cells = new Int32Array(buffer);
  }

  /** Owner: allows `frames` more frames. */
  grant(frames: number): void {
    Atomics.add(this.#cells, CREDITS, frames);
    Atomics.notify(this.#cells, CREDITS);
  }

  /** Owner: asks the worker to stop at the next packet. */
  cancel(): void {
    Atomics.store(this.#cells, CANCELLED, 1);
    this.grant(1); // wakes a worker that waits
  }

  /** Owner: a number that changes while the worker makes progress; undefined while it waits for its owner. */
  progress(): number | undefined {
    return Atomics.load(this.#cells, WAITING) === 1 ? undefined : Atomics.load(this.#cells, BEAT);
  }

  /** Worker: whether to stop. */
  get cancelled(): boolean {
    return Atomics.load(this.#cells, CANCELLED) === 1;
  }

  /** Worker: says that it is alive. */
  beat(): void {
    Atomics.add(this.#cells, BEAT, 1);
  }

  /** Worker: blocks until a frame may be delivered; false when it was asked to stop instead. */
  takeCredit(): boolean {
    Atomics.store(this.#cells, WAITING, 1);
    while (!this.cancelled && Atomics.load(this.#cells, CREDITS) <= 0) {
      Atomics.wait(this.#cells, CREDITS, 0);
    }
    Atomics.store(this.#cells, WAITING, 0);
    this.beat();
    if (this.cancelled) return false;
    Atomics.sub(this.#cells, CREDITS, 1);
    return true;
  }
}
