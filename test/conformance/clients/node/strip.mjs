// TypeScript on standard input, JavaScript on standard output: `node strip.mjs < example.ts`.
import { readFileSync } from "node:fs";
import { transformSync } from "amaro";

process.stdout.write(transformSync(readFileSync(0, "utf8")).code);
