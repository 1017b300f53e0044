#include "netnode/sanctl/completion.h"

#include <algorithm>
#include <functional>
#include <vector>

namespace sanproxy::sanctl {
namespace {

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

// CLI11 tells what an option takes as "TEXT:{bash,zsh}". "": anything.
std::string choices_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const std::size_t begin = type.find('{');
  if (begin == std::string::npos) return "";
  std::string out = type.substr(begin + 1, type.find('}', begin) - begin - 1);
  std::replace(out.begin(), out.end(), ',', ' ');
  return out;
}

// What may follow a command: what it takes, and the options of all commands that it is below.
std::string words_of(const CLI::App& app) {
  std::vector<std::string> words;
  const auto add = [&words](const std::string& word) {
    if (word.empty() || std::find(words.begin(), words.end(), word) != words.end()) return;
    words.push_back(word);
  };
  for (const CLI::App* sub : commands_of(app)) add(sub->get_name());
  for (const CLI::App* from = &app; from != nullptr; from = from->get_parent()) {
    for (const CLI::Option* option : from->get_options()) {
      if (option->get_positional()) add(choices_of(*option));
      for (const std::string& name : option->get_lnames()) add("--" + name);
    }
  }
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

// Commands such as "config set".
using Visit = std::function<void(const CLI::App& app, const std::string& command)>;
void visit(const CLI::App& app, const std::string& command, const Visit& with) {
  with(app, command);
  for (const CLI::App* sub : commands_of(app)) {
    visit(*sub, command.empty() ? sub->get_name() : command + " " + sub->get_name(), with);
  }
}

void add_case(const std::string& pattern, const std::string& words, std::string& out) {
  out += "    \"" + pattern + "\") offered=\"" + words + "\" ;;\n";
}

}  // namespace

std::string completion_script(const CLI::App& app, const std::string& shell) {
  std::string cases, choices, names;
  visit(app, "", [&](const CLI::App& at, const std::string& command) {
    add_case(command, words_of(at), cases);
    if (!command.empty()) names += (names.empty() ? "\"" : "|\"") + command + "\"";
    for (const CLI::Option* option : at.get_options()) {
      const std::string values = choices_of(*option);
      if (values.empty() || option->get_positional()) continue;
      for (const std::string& name : option->get_lnames()) {
        add_case(std::string(command).append(" --").append(name), values, choices);
      }
    }
  });
  std::string out = "# sanctl completion " + shell + "\n";
  if (shell == "zsh") {
    out +=
        "(( ${+functions[compdef]} )) || { autoload -U +X compinit && compinit; }\n"
        "autoload -U +X bashcompinit && bashcompinit\n";
  }
  // zsh has meanings of its own for names such as "path" and "words".
  out +=
      "_sanctl() {\n"
      "  local word at=\"\" offered=\"\"\n"
      "  for word in \"${COMP_WORDS[@]:1:$((COMP_CWORD-1))}\"; do\n"
      "    case \"${at:+$at }$word\" in\n"  // a node may be named like a command
      "      " +
      names +
      ") at=\"${at:+$at }$word\" ;;\n"
      "    esac\n"
      "  done\n"
      "  case \"$at\" in\n" +
      cases +
      "  esac\n"
      "  case \"$at ${COMP_WORDS[$((COMP_CWORD-1))]}\" in\n" +
      choices +
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$offered\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
      "}\n"
      "complete -o default -F _sanctl sanctl\n";
  return out;
}

}  // namespace sanproxy::sanctl
