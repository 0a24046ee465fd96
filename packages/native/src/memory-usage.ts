import process from 'node:process';

/** The most memory that this process ever had in use, weights and features included. */
export function memoryUsage(): { peakRssBytes: number } {
  return { peakRssBytes: process.resourceUsage().maxRSS * 1024 };
}
