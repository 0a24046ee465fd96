/** How a stored picture is turned and mirrored for display, from a container's display matrix. */

/** FFmpeg filters that make the stored picture upright, and whether width and height change places. */
export interface Orientation {
  readonly filters: readonly string[];
  readonly swapsSides: boolean;
  /** False for a turn that is no multiple of 90°, which stays as stored. */
  readonly exact: boolean;
}

export const UPRIGHT: Orientation = { filters: [], swapsSides: false, exact: true };

const TURNED = { swapsSides: true, exact: true };
const FLIPPED = { swapsSides: false, exact: true };

/**
 * `matrix` is FFmpeg's: nine 32-bit integers, by rows `a b u, c d v, x y w`; a stored point (p, q) is displayed at
 * (a·p + c·q, b·p + d·q).
 */
export function orientationOf(matrix: Buffer): Orientation {
  if (matrix.length < 36) return UPRIGHT;
  const [a, b, c, d] = [0, 1, 3, 4].map((cell) => {
    const value = matrix.readInt32LE(cell * 4) / 65536;
    return Math.abs(value) < 0.01 ? 0 : Math.sign(value);
  });
  // `copy` because a vertical flip only turns the row order around, and rows are handed out top down.
  switch (`${a} ${b} ${c} ${d}`) {
    case '1 0 0 1':
    case '0 0 0 0':
      return UPRIGHT;
    case '-1 0 0 1':
      return { filters: ['hflip'], ...FLIPPED };
    case '1 0 0 -1':
      return { filters: ['vflip', 'copy'], ...FLIPPED };
    case '-1 0 0 -1':
      return { filters: ['hflip', 'vflip', 'copy'], ...FLIPPED };
    case '0 1 -1 0':
      return { filters: ['transpose=clock'], ...TURNED };
    case '0 -1 1 0':
      return { filters: ['transpose=cclock'], ...TURNED };
    case '0 1 1 0':
      return { filters: ['transpose=cclock_flip'], ...TURNED };
    case '0 -1 -1 0':
      return { filters: ['transpose=clock_flip'], ...TURNED };
    default:
      return { ...UPRIGHT, exact: false };
  }
}
