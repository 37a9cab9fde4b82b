// tokenskip.h from C++11: objects that free themselves, errors as exceptions. The implementation may be compiled as
// C++, as here, or in a C file of its own.
//
//     c++ -std=c++11 -O2 -I. examples/embed.cpp -o embed -lm -lpthread -ldl && ./embed examples/demo-model
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#include "tokenskip.h"

#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

// error.check(tsk_anything(..., &error)) throws when the call failed.
struct Error : tsk_error {
    void check(tsk_status outcome) const {
        if (outcome != TSK_OK) throw std::runtime_error(message);
    }
};

struct Release {
    void operator()(tsk_model *model) const { tsk_model_free(model); }
    void operator()(tsk_session *session) const { tsk_session_free(session); }
};
struct Tokens : tsk_tokens { Tokens() : tsk_tokens() {} ~Tokens() { tsk_tokens_free(this); } };
struct Text : tsk_text { Text() : tsk_text() {} ~Text() { tsk_text_free(this); } };

class Assistant {
public:
    explicit Assistant(const std::string &dir) {
        tsk_model *loaded = nullptr;
        tsk_session *created = nullptr;
        tsk_generate_options options = tsk_generate_options_default();
        Error error;
        error.check(tsk_model_load(dir.c_str(), nullptr, &loaded, &error));
        model_.reset(loaded);
        error.check(tsk_session_create(loaded, &options, &created, &error));
        session_.reset(created);
    }

    std::string answer(const std::string &question) {
        const tsk_tokenizer *tokenizer = tsk_model_tokenizer(model_.get());
        const tsk_message message = {"user", question.c_str()};
        Tokens prompt;
        Text text;
        tsk_result result;
        Error error;
        error.check(tsk_chat_encode(tokenizer, &message, 1, 0, &prompt, &error));
        error.check(tsk_generate(session_.get(), prompt.ids, prompt.count, nullptr, &result, &error));
        error.check(tsk_tokenizer_decode(tokenizer, result.tokens, result.n_before_end, 1, &text, &error));
        return std::string(text.data ? text.data : "", text.length);
    }

private:
    std::unique_ptr<tsk_model, Release> model_;     // shared by any number of sessions, in any threads
    std::unique_ptr<tsk_session, Release> session_; // declared later, so freed first
};

int main(int argc, char **argv) try {
    Assistant assistant(argc > 1 ? argv[1] : "examples/demo-model");
    std::cout << assistant.answer("Who is Newton in physics?") << "\n"
              << assistant.answer("What is the capital of France?") << "\n";
} catch (const std::exception &error) {
    std::cerr << "embed: " << error.what() << "\n";
    return 1;
}
