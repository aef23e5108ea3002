import { homedir } from 'node:os';
import { join } from 'node:path';

/** What a download reports while it runs. `total` is 0 where the server does not say. */
export interface DownloadProgress {
  file: string;
  loaded: number;
  total: number;
}

/** The folder of this user for things that lowrank fetches: XDG_CACHE_HOME/lowrank, or where the platform keeps caches. */
export function userCacheFolder(environment: NodeJS.ProcessEnv = process.env): string {
  if (environment.XDG_CACHE_HOME) return join(environment.XDG_CACHE_HOME, 'lowrank');
  if (process.platform === 'darwin') return join(homedir(), 'Library', 'Caches', 'lowrank');
  if (process.platform === 'win32') return join(environment.LOCALAPPDATA ?? join(homedir(), 'AppData', 'Local'), 'lowrank', 'Cache');
  return join(homedir(), '.cache', 'lowrank');
}
