// A program's command line: parsed, or the exit status to end with.
//
// Document: docs/administration.md "Exit status". Thread: start-up only.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>

namespace sanproxy::daemon {

// Prints what is wrong, or what --help and --version ask for. Nothing: go on.
inline std::optional<int> parse_command_line(CLI::App& app, int argc, char** argv) {
  constexpr int kExitUsage = 2;  // CLI11's own are beyond 100
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  return std::nullopt;
}

}  // namespace sanproxy::daemon
