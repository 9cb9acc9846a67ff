import { defineConfig } from "vitest/config";

// The modules under test are plain scripts of the pack, two folders up.
export default defineConfig({ test: { include: ["*.test.js"], root: import.meta.dirname }, server: { fs: { allow: ["../.."] } } });
