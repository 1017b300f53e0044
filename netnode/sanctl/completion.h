// Completion scripts for shells, made from the commands and options that the program has.
//
// Document: docs/sanctl.md "Completion". Thread: any.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace sanproxy::sanctl {

// `shell`: "bash" or "zsh".
std::string completion_script(const CLI::App& app, const std::string& shell);

}  // namespace sanproxy::sanctl
